# Functions for the documents' hidden commands. $BOOK is the program of this test.
set -eEuo pipefail

# wait_for COMMAND...: until it succeeds.
wait_for() {
    local n
    for ((n = 0; n < 1200; n++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "not within a minute: $*" >&2
    return 1
}

# guest_writes SOCKET OFFSET LENGTH LETTER: a guest fills a part of its disk, and flushes.
guest_writes() { "$BOOK" guest write "$@"; }

# guest_sees SOCKET OFFSET LENGTH LETTER: a guest finds this part so. The letter 0 is a zero byte.
guest_sees() { "$BOOK" guest see "$@"; }

# file_has FILE OFFSET LENGTH LETTER: the same for a file.
file_has() { "$BOOK" guest file "$@"; }

# fails COMMAND...: it does, with its message on standard output.
fails() { if "$@" 2>&1; then echo "succeeded: $*" >&2; return 1; fi; }
