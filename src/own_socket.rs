//! Whether a socket at a path is one of this process: nobody else has to be stopped then.

use std::fs;
use std::path::Path;

/// Whether this process has a Unix socket that is bound to `path`, as it was written when it was
/// bound. False if the system does not tell.
pub fn is_own(path: &Path) -> bool {
    let (Some(path), Ok(table)) = (path.to_str(), fs::read_to_string("/proc/self/net/unix")) else {
        return false;
    };
    // Number, references, protocol, flags, type, state, inode, path.
    let bound = table.lines().filter_map(|line| {
        let (head, at) = line
            .split_once(" /")
            .map(|(head, at)| (head, format!("/{at}")))?;
        let inode = head.split_whitespace().last()?;
        (at == path).then(|| format!("socket:[{inode}]"))
    });
    let bound: Vec<String> = bound.collect();
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return false;
    };
    let mut open = descriptors
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    open.any(|target| bound.iter().any(|socket| target == Path::new(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_is_own_as_long_as_it_is_open_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, other) = (folder.path().join("a b.sock"), folder.path().join("a"));
        let listener = UnixListener::bind(&mine).unwrap();
        assert!(is_own(&mine) && !is_own(&other));
        // To be connected to one does not make it one's own.
        let client = UnixStream::connect(&mine).unwrap();
        let accepted = listener.accept().unwrap();
        drop((listener, accepted));
        assert!(!is_own(&mine));
        drop(client);
    }
}
