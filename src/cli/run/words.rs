//! What stands for the disks in the words of a command:
//!
//! | | becomes |
//! |---|---|
//! | `{socket}`, `{socket2}` | the path of the socket, anywhere in a word |
//! | `{disk}`, `{disk2},bootindex=1` | QEMU's options for a disk; the rest is added to `-device` |
//! | `{memory=2G}` | QEMU's options for memory that the daemon can share |
//!
//! All other braces stay as they are.

use std::ffi::OsString;

use crate::size;

const MIB: u64 = 1 << 20;

/// A socket that is only checked for.
const ANY: &str = "/";

/// Refuses words that [`expand`] would refuse for `disks` disks.
pub fn check(words: &[OsString], disks: usize) -> Result<(), String> {
    expand(words, &vec![ANY.to_owned(); disks]).map(drop)
}

/// The command for disks at `sockets`. A word that is not UTF-8 stays as it is.
pub fn expand(words: &[OsString], sockets: &[String]) -> Result<Vec<OsString>, String> {
    let mut expanded = Vec::new();
    for word in words {
        match word.to_str() {
            None => expanded.push(word.clone()),
            Some(word) => expanded.extend(one(word, sockets)?.into_iter().map(OsString::from)),
        }
    }
    Ok(expanded)
}

fn one(word: &str, sockets: &[String]) -> Result<Vec<String>, String> {
    if let Some((before, named, after)) = find(word, "disk", sockets.len())? {
        let socket = sockets.get(named).map_or("", String::as_str);
        return disk(word, before, named + 1, socket, after);
    }
    if word.contains("{memory}") {
        return Err("{memory}: give the size of the guest's memory, as in {memory=2G}".to_owned());
    }
    if let Some((before, rest)) = word.split_once("{memory=")
        && let Some((size, after)) = rest.split_once('}')
    {
        return memory(word, before, size, after);
    }
    let (mut done, mut rest) = (String::new(), word);
    while let Some((before, named, after)) = find(rest, "socket", sockets.len())? {
        done.push_str(before);
        done.push_str(sockets.get(named).map_or("", String::as_str));
        rest = after;
    }
    done.push_str(rest);
    Ok(vec![done])
}

/// The first `{name}` or `{nameN}` in `word`: what stands before it, the number of the disk
/// from 0, and what stands behind it.
fn find<'a>(
    word: &'a str,
    name: &str,
    disks: usize,
) -> Result<Option<(&'a str, usize, &'a str)>, String> {
    for (at, _) in word.match_indices('{') {
        let (before, rest) = word.split_at(at);
        let inner = rest.strip_prefix('{').and_then(|r| r.split_once('}'));
        let Some((inner, after)) = inner else {
            continue;
        };
        let Some(number) = inner.strip_prefix(name) else {
            continue;
        };
        if number.is_empty() && disks == 1 {
            return Ok(Some((before, 0, after)));
        }
        if number.is_empty() {
            return Err(format!(
                "{{{name}}}: there are {disks} images; write {{{name}1}}, {{{name}2}}, …"
            ));
        }
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        return match number.parse::<usize>().ok().and_then(|n| n.checked_sub(1)) {
            Some(named) if named < disks => Ok(Some((before, named, after))),
            _ => Err(format!(
                "{{{inner}}}: there are only the images 1 to {disks}; give another --image, or another number"
            )),
        };
    }
    Ok(None)
}

fn disk(
    word: &str,
    before: &str,
    number: usize,
    socket: &str,
    more: &str,
) -> Result<Vec<String>, String> {
    if !before.is_empty() || !(more.is_empty() || more.starts_with(',')) {
        return Err(format!(
            "`{word}`: {{disk}} stands for several words, so it must be a word of its own; only options for the device may \
             follow, as in {{disk}},bootindex=1"
        ));
    }
    Ok(vec![
        "-chardev".to_owned(),
        format!("socket,id=snapback{number},path={}", value(socket)),
        "-device".to_owned(),
        format!("vhost-user-blk-pci,chardev=snapback{number}{more}"),
    ])
}

fn memory(word: &str, before: &str, size: &str, after: &str) -> Result<Vec<String>, String> {
    if !before.is_empty() || !after.is_empty() {
        return Err(format!(
            "`{word}`: {{memory=SIZE}} stands for several words, so it must be a word of its own"
        ));
    }
    let bytes = size::parse(size).map_err(|e| format!("{{memory={size}}}: {e}"))?;
    if bytes == 0 || !bytes.is_multiple_of(MIB) {
        return Err(format!(
            "{{memory={size}}}: the size must be a multiple of 1M, and not 0"
        ));
    }
    let size = bytes / MIB;
    Ok(vec![
        "-m".to_owned(),
        format!("{size}M"),
        "-object".to_owned(),
        format!("memory-backend-memfd,id=snapback-memory,size={size}M,share=on"),
        "-machine".to_owned(),
        "memory-backend=snapback-memory".to_owned(),
    ])
}

/// A value in an option of QEMU, in which two commas stand for one.
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(words: &[&str], sockets: &[&str]) -> Result<Vec<String>, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let sockets: Vec<String> = sockets.iter().map(|s| (*s).to_owned()).collect();
        let done = expand(&words, &sockets)?;
        Ok(done.into_iter().map(|w| w.into_string().unwrap()).collect())
    }

    #[test]
    fn sockets_disks_and_memory_are_put_in_and_nothing_else_is_touched() {
        let json = r#"{"driver":"virtio-rng-pci"}"#;
        let words = ["vmm", "a={socket},b={socket}", "{disk},bootindex=1", json];
        let done = expanded(&words, &["/t/a,b.sock"]).unwrap();
        let disk = [
            "-chardev",
            "socket,id=snapback1,path=/t/a,,b.sock",
            "-device",
            "vhost-user-blk-pci,chardev=snapback1,bootindex=1",
        ];
        let mut expected = vec!["vmm", "a=/t/a,b.sock,b=/t/a,b.sock"];
        expected.extend(disk);
        expected.push(json);
        assert_eq!(done, expected);
        let memory = expanded(&["{memory=1.5G}"], &["/s"]).unwrap().join(" ");
        assert_eq!(
            memory,
            "-m 1536M -object memory-backend-memfd,id=snapback-memory,size=1536M,share=on \
             -machine memory-backend=snapback-memory"
        );
        let untouched = [
            "{",
            "}",
            "{}",
            "{socket",
            "{sockets}",
            "{disky}",
            "{x}{memory",
            "ä{",
        ];
        assert_eq!(expanded(&untouched, &["/s"]).unwrap(), untouched);
        let two = expanded(&["{disk2}", "{socket1}{socket2}"], &["/a", "/b"]).unwrap();
        assert_eq!(two[1], "socket,id=snapback2,path=/b");
        assert_eq!(two.last().unwrap(), "/a/b");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_way_out() {
        for (word, disks, message) in [
            ("{disk}", 2, "write {disk1}, {disk2}"),
            ("{socket}", 2, "write {socket1}, {socket2}"),
            ("{disk3}", 2, "the images 1 to 2"),
            ("{socket0}", 2, "the images 1 to 2"),
            ("{socket99999999999999999999}", 1, "the images 1 to 1"),
            ("x{disk}", 1, "a word of its own"),
            ("{disk}x", 1, "{disk},bootindex=1"),
            ("{memory}", 1, "{memory=2G}"),
            ("{memory=}", 1, "not a size"),
            ("{memory=0}", 1, "multiple of 1M"),
            ("{memory=1000}", 1, "multiple of 1M"),
            ("-m{memory=1G}", 1, "a word of its own"),
        ] {
            let sockets = vec!["/s"; disks];
            let error = expanded(&[word], &sockets).unwrap_err();
            assert!(error.contains(message), "{word}: {error}");
        }
    }
}
