//! Which file of the sources uses which path: as much of Rust's syntax as that needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A path in the code of a file.
#[derive(Debug)]
pub struct Used {
    /// The file below `src`.
    pub file: String,
    /// The module that the path stands in.
    pub from: Vec<String>,
    /// The path from the crate's root, with the item at its end.
    pub path: Vec<String>,
    pub in_test: bool,
    /// The name that a `use` declaration gives it there.
    imported_as: Option<String>,
    /// The declaration only passes the name on.
    re_exported: bool,
}

/// The sources, with all paths in them.
#[derive(Debug)]
pub struct Sources {
    /// Module → its file.
    files: BTreeMap<Vec<String>, String>,
    used: Vec<Used>,
}

impl Sources {
    /// Those of the crate.
    pub fn of_the_crate() -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        rust_files(&src, &src, &mut found);
        assert!(
            found.len() > 100,
            "the sources are not where they should be"
        );
        let texts: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .filter(|(name, _)| !["lib.rs", "main.rs"].contains(name))
            .collect();
        Self::of(&texts)
    }

    /// Those of files given as name and text.
    pub fn of(texts: &[(&str, &str)]) -> Self {
        let names: BTreeSet<&str> = texts.iter().map(|(name, _)| *name).collect();
        let files: BTreeMap<Vec<String>, String> = names
            .iter()
            .map(|name| (module_of(name, &names), (*name).to_owned()))
            .collect();
        let mut used = Vec::new();
        for (name, text) in texts {
            let tokens = tokens(text);
            Reader::new(name, module_of(name, &names), &tokens).read(&mut used);
        }
        Self { files, used }
    }

    pub fn uses(&self) -> impl Iterator<Item = &Used> {
        self.used.iter().filter(|used| !used.path.is_empty())
    }

    /// Which file of `module` uses which other one, without tests.
    pub fn edges_within(&self, module: &str) -> BTreeSet<(&str, &str)> {
        let mut edges = BTreeSet::new();
        for used in self.uses() {
            if used.from[0] != module || used.in_test || used.re_exported {
                continue;
            }
            if let Some(target) = self.defining_file(&used.path, 0)
                && used.path[0] == module
                && target != used.file
            {
                edges.insert((used.file.as_str(), target));
            }
        }
        edges
    }

    /// The file that defines the item at the end of `path`: re-exports are followed.
    fn defining_file(&self, path: &[String], depth: usize) -> Option<&str> {
        let (module, file) = (0..=path.len())
            .rev()
            .find_map(|end| self.files.get_key_value(&path[..end]))?;
        let passed_on = path.get(module.len()).and_then(|name| {
            self.used
                .iter()
                .find(|used| used.from == *module && used.imported_as.as_ref() == Some(name))
        });
        match passed_on {
            Some(used) if depth < 8 => {
                let further = path.get(module.len() + 1..).unwrap_or_default();
                let path = [used.path.as_slice(), further].concat();
                self.defining_file(&path, depth + 1)
            }
            _ => Some(file),
        }
    }
}

fn rust_files(dir: &Path, src: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, src, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(src).unwrap().to_str().unwrap();
            found.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The module that the file `name` is. `x_tests.rs` is the module `tests` of `x.rs`.
fn module_of(name: &str, names: &BTreeSet<&str>) -> Vec<String> {
    let stem = name.strip_suffix(".rs").unwrap();
    let stem = match stem.strip_suffix("_tests") {
        Some(tested) if names.contains(format!("{tested}.rs").as_str()) => {
            format!("{tested}/tests")
        }
        _ => stem.strip_suffix("/mod").unwrap_or(stem).to_owned(),
    };
    stem.split('/').map(str::to_owned).collect()
}

fn is_test_file(name: &str) -> bool {
    ["/tests/", "/tests.rs", "_tests.rs", "/conformance/"]
        .iter()
        .any(|part| name.contains(part))
        || name.starts_with("races/")
        || name.starts_with("fuzzing/")
}

/// Identifiers, `::`, and every other character that is not white space. Comments
/// and the contents of literals are left out.
fn tokens(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(len) = literal(rest) {
            len
        } else if first.is_alphanumeric() || first == '_' {
            let len = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.push(rest[..len].to_owned());
            len
        } else if rest.starts_with("::") {
            found.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                found.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[len..];
    }
    found
}

/// The length of the string or character that `text` begins with.
fn literal(text: &str) -> Option<usize> {
    let raw = text.strip_prefix("br").or_else(|| text.strip_prefix('r'));
    if let Some(raw) = raw {
        let marks = raw.len() - raw.trim_start_matches('#').len();
        if raw[marks..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(marks));
            let start = text.len() - raw.len() + marks + 1;
            return Some(start + text[start..].find(&end)? + end.len());
        }
    }
    let body = text.strip_prefix(['b', 'c']).unwrap_or(text);
    let mut chars = body.char_indices();
    let quote = chars.next().map(|(_, quote)| quote)?;
    // `'a` without a second quote is a lifetime.
    let is_char = || body.starts_with("'\\") || body.chars().nth(2) == Some('\'');
    if quote != '"' && (quote != '\'' || !is_char()) {
        return None;
    }
    let mut escaped = false;
    let end = chars.find(|(_, c)| {
        let ends = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map(|(at, _)| text.len() - body.len() + at + 1)
}

/// Reads the tokens of one file.
struct Reader<'a> {
    file: &'a str,
    tokens: &'a [String],
    at: usize,
    /// Where the code is: the file's module, and modules inside the file.
    module: Vec<String>,
    /// For each module inside the file: the depth of braces around it, whether it
    /// is for tests.
    inner: Vec<(usize, bool)>,
    braces: usize,
    children: BTreeSet<&'a str>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a str, module: Vec<String>, tokens: &'a [String]) -> Self {
        let is_child = |t: &&'a [String]| t[0] == "mod" && t[2] == ";";
        let children = tokens.windows(3).filter(is_child);
        Self {
            file,
            tokens,
            at: 0,
            module,
            inner: Vec::new(),
            braces: 0,
            children: children.map(|t| t[1].as_str()).collect(),
        }
    }

    fn token(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", String::as_str)
    }

    fn read(&mut self, found: &mut Vec<Used>) {
        while self.at < self.tokens.len() {
            let token = self.token(self.at);
            match token {
                "mod" if self.token(self.at + 2) == "{" => self.enter(),
                "{" => self.braces += 1,
                "}" => self.leave(),
                _ => {}
            }
            let begins = ["crate", "super", "self"].contains(&token)
                || (self.children.contains(token) && self.inner.is_empty());
            let before = self.at.checked_sub(1).map_or("", |at| self.token(at));
            if begins && self.token(self.at + 1) == "::" && ![".", "::"].contains(&before) {
                let import = before == "use";
                let public =
                    import && [")", "pub"].contains(&self.token(self.at.saturating_sub(2)));
                let mut leaves = Vec::new();
                self.tree(Vec::new(), &mut leaves);
                for (path, name) in leaves {
                    let path = self.absolute(&path);
                    let re_exported = public && !self.is_used_here(&name);
                    found.push(Used {
                        file: self.file.to_owned(),
                        from: self.module.clone(),
                        path,
                        in_test: is_test_file(self.file)
                            || self.inner.iter().any(|(_, test)| *test),
                        re_exported,
                        imported_as: import.then_some(name),
                    });
                }
            } else {
                self.at += 1;
            }
        }
    }

    /// Whether the file uses the name `name` itself that it re-exports once.
    fn is_used_here(&self, name: &str) -> bool {
        let is_child = self.children.contains(name);
        let places = (0..self.tokens.len()).filter(|at| self.token(*at) == name);
        let uses = places.filter(|at| {
            let of_the_child = at.checked_sub(1).is_some_and(|at| self.token(at) == "mod")
                || self.token(at + 1) == "::";
            !(is_child && of_the_child)
        });
        uses.count() > 1
    }

    /// A module inside the file begins.
    fn enter(&mut self) {
        let name = self.token(self.at + 1);
        let attribute = self.tokens[..self.at]
            .iter()
            .rev()
            .take_while(|t| ![";", "}"].contains(&t.as_str()))
            .any(|t| t == "test");
        self.module.push(name.to_owned());
        self.inner.push((self.braces, attribute || name == "tests"));
        self.at += 1;
    }

    fn leave(&mut self) {
        self.braces = self.braces.saturating_sub(1);
        if self
            .inner
            .last()
            .is_some_and(|(depth, _)| *depth == self.braces)
        {
            self.inner.pop();
            self.module.pop();
        }
    }

    /// Reads a path or a tree of paths; each with the name that it gives.
    fn tree(&mut self, mut path: Vec<String>, leaves: &mut Vec<(Vec<String>, String)>) {
        loop {
            let token = self.token(self.at);
            if token == "{" {
                self.at += 1;
                while !["}", ""].contains(&self.token(self.at)) {
                    let before = self.at;
                    self.tree(path.clone(), leaves);
                    if self.token(self.at) == "," || self.at == before {
                        self.at += 1;
                    }
                }
                self.at += 1;
                return;
            }
            let is_name = token.starts_with(|c: char| c.is_alphabetic() || c == '_');
            if is_name {
                // `a::{self}` is `a`.
                if token != "self" || path.is_empty() {
                    path.push(token.to_owned());
                }
                self.at += 1;
            }
            if !is_name || self.token(self.at) != "::" {
                break;
            }
            self.at += 1;
        }
        let mut name = path.last().cloned().unwrap_or_default();
        if self.token(self.at) == "as" {
            name = self.token(self.at + 1).to_owned();
            self.at += 2;
        }
        if self.token(self.at) == "*" {
            name = "*".to_owned();
            self.at += 1;
        }
        leaves.push((path, name));
    }

    /// `path` from the root of the crate.
    fn absolute(&self, path: &[String]) -> Vec<String> {
        let mut base = self.module.clone();
        let mut rest = path;
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "crate" => base.clear(),
                "super" => drop(base.pop()),
                "self" => {}
                _ => break,
            }
            rest = others;
        }
        [base.as_slice(), rest].concat()
    }
}
