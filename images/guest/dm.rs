//! Device-mapper through its ioctl interface: starting a program for each device would
//! take too long for a script that sets up hundreds of them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Size of the structure that every call begins with, in bytes.
const HEADER: usize = 312;
const TARGET: usize = 40;
const BUFFER: usize = 16 * 1024;
const NAME_AT: usize = 48;

const DEV_CREATE: u64 = 3;
const DEV_REMOVE: u64 = 4;
const DEV_SUSPEND: u64 = 6;
const DEV_STATUS: u64 = 7;
const TABLE_LOAD: u64 = 9;
const TABLE_STATUS: u64 = 12;

const SUSPEND_FLAG: u32 = 1 << 1;

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

pub struct Mapper {
    control: File,
}

/// What a call returned: the device's number and, for a status, its text.
struct Reply {
    major: u64,
    minor: u64,
    text: String,
}

impl Mapper {
    pub fn open() -> io::Result<Self> {
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/mapper/control")?;
        Ok(Self { control })
    }

    /// Creates a device with one target over its whole length and activates it.
    pub fn create(&self, name: &str, sectors: u64, target: &str, params: &str) -> io::Result<()> {
        self.call(DEV_CREATE, name, 0, None)?;
        let table = self.call(TABLE_LOAD, name, 0, Some((sectors, target, params)));
        if let Err(error) = table.and_then(|_| self.resume(name)) {
            let _ = self.call(DEV_REMOVE, name, 0, None);
            return Err(error);
        }
        Ok(())
    }

    pub fn suspend(&self, name: &str) -> io::Result<()> {
        self.call(DEV_SUSPEND, name, SUSPEND_FLAG, None).map(drop)
    }

    pub fn resume(&self, name: &str) -> io::Result<()> {
        self.call(DEV_SUSPEND, name, 0, None).map(drop)
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(DEV_REMOVE, name, 0, None).map(drop)
    }

    /// `major:minor`, as a table names a device.
    pub fn number(&self, name: &str) -> io::Result<String> {
        let reply = self.call(DEV_STATUS, name, 0, None)?;
        Ok(format!("{}:{}", reply.major, reply.minor))
    }

    /// The device's node.
    pub fn path(&self, name: &str) -> io::Result<String> {
        let reply = self.call(DEV_STATUS, name, 0, None)?;
        Ok(format!("/dev/dm-{}", reply.minor))
    }

    /// What `dmsetup status` prints for the device.
    pub fn status(&self, name: &str) -> io::Result<String> {
        Ok(self.call(TABLE_STATUS, name, 0, None)?.text)
    }

    fn call(
        &self,
        number: u64,
        name: &str,
        flags: u32,
        table: Option<(u64, &str, &str)>,
    ) -> io::Result<Reply> {
        // Words, so that the kernel's structures are aligned.
        let mut memory = vec![0_u64; BUFFER / 8];
        let mut bytes: Vec<u8> = Vec::with_capacity(BUFFER);
        for word in [4_u32, 0, 0, BUFFER as u32, HEADER as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(u32::from(table.is_some()).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes()); // open count
        bytes.extend(flags.to_le_bytes());
        bytes.resize(NAME_AT, 0);
        bytes.extend(name.as_bytes());
        bytes.resize(HEADER, 0);
        if let Some((sectors, target, params)) = table {
            let next = (TARGET + params.len() + 1).next_multiple_of(8);
            bytes.extend(0_u64.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(0_u32.to_le_bytes());
            bytes.extend((next as u32).to_le_bytes());
            bytes.extend(target.as_bytes());
            bytes.resize(HEADER + TARGET, 0);
            bytes.extend(params.as_bytes());
        }
        bytes.resize(BUFFER, 0);
        for (word, source) in memory.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(source.try_into().unwrap_or_default());
        }
        let request = (3 << 30) | ((HEADER as u64) << 16) | (0xfd << 8) | number;
        // SAFETY: the kernel reads and writes at most the BUFFER bytes that the
        // header announces, and they are ours until the call returns.
        let result = unsafe { ioctl(self.control.as_raw_fd(), request, memory.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(Reply::parse(&bytes, number == TABLE_STATUS))
    }
}

impl Reply {
    fn parse(bytes: &[u8], has_text: bool) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let device = long(40);
        let start = u32::from_le_bytes(bytes[16..20].try_into().unwrap_or_default()) as usize;
        let string = |at: usize, end: usize| {
            let text: Vec<u8> = bytes[at..end]
                .iter()
                .copied()
                .take_while(|b| *b != 0)
                .collect();
            String::from_utf8_lossy(&text).into_owned()
        };
        let text = if has_text {
            let target = string(start + 24, start + TARGET);
            let params = string(start + TARGET, bytes.len());
            format!("{} {} {target} {params}", long(start), long(start + 8))
        } else {
            String::new()
        };
        Self {
            major: (device >> 8) & 0xfff,
            minor: (device & 0xff) | ((device >> 12) & 0xf_ff00),
            text,
        }
    }
}
