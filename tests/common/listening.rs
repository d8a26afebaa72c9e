//! Whether a process listens at a socket. The file is there a moment before, and a connection
//! to find out would be a front end's.

use std::fs;

/// `end`: that of the socket's path.
pub fn listens(process: u32, end: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let targets = descriptors.flatten().map(|fd| fs::read_link(fd.path()));
    let targets: Vec<_> = targets.flatten().collect();
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Num RefCount Protocol Flags Type St Inode Path; the flag: it accepts connections.
        let [_, _, _, "00010000", _, _, inode, path] = words[..] else {
            return false;
        };
        let socket = format!("socket:[{inode}]");
        path.ends_with(end) && targets.iter().any(|target| target.as_os_str() == &*socket)
    })
}
