#!/usr/bin/env bash
# Makes pages of the documents with mdBook, into target/book (cargo install mdbook). mdBook renders
# one folder only, so the project's own documents are put beside docs/ in a copy, in which all links
# are right; then each link of each page is tried.
set -euo pipefail
cd "$(dirname "$0")/.."
source=target/book-source
rm -rf "$source" target/book
mkdir -p "$source"
cp -r docs ./*.md LICENSE-* "$source"
sed 's|](\([a-z]\)|](docs/\1|; s|^\[snapback\](README.md)|&\n\n[The documents](docs/README.md)|' docs/SUMMARY.md >"$source/SUMMARY.md"
printf '%s\n' '- [Contributing](CONTRIBUTING.md)' '- [Changes](CHANGELOG.md)' >>"$source/SUMMARY.md"
# mdBook makes index.html of README.md, but does not change links to it.
find "$source" -name '*.md' ! -name SUMMARY.md -exec sed -i -E 's|(\]\([^):]*)README\.md|\1index.md|g' {} +
# A list of contents is no page.
sed -i 's|\[SUMMARY.md\](SUMMARY.md)|SUMMARY.md|' "$source/docs/README.md"
rm "$source/docs/SUMMARY.md"
mdbook build docs

missing=0
while IFS= read -r page; do
    while IFS= read -r link; do
        file=${link%%#*} anchor=
        [[ $link != *'#'* ]] || anchor=${link#*#}
        target=$page
        [[ -z $file ]] || target=$(dirname "$page")/$file
        if [[ ! -e $target ]] || { [[ -n $anchor ]] && ! grep -qF "id=\"$anchor\"" "$target"; }; then
            echo "$page: $link leads nowhere" >&2
            missing=1
        fi
    done < <(grep -oE '(href|src)="[^":]*"' "$page" | sed 's/^[a-z]*="//; s/"$//' | sort -u)
done < <(find target/book -name '*.html' ! -name print.html ! -name 404.html ! -name toc.html)
exit "$missing"
