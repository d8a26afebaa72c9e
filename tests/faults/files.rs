//! The calls of a [`super::BrokenFs`]: each asks first what is to become of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::broken_fs::{Op, Shared};

/// Nothing is kept in the kernel.
const TTL: Duration = Duration::ZERO;

#[derive(Default)]
struct Table {
    names: HashMap<u64, String>,
    open: HashMap<u64, (u64, Arc<File>)>,
    last: u64,
}

/// The files of a folder.
pub struct Files {
    root: PathBuf,
    shared: Arc<Shared>,
    table: Mutex<Table>,
}

impl Files {
    pub fn new(root: PathBuf, shared: Arc<Shared>) -> Self {
        Self {
            root,
            shared,
            table: Mutex::default(),
        }
    }

    fn at(&self, name: &OsStr) -> PathBuf {
        self.root.join(name)
    }

    /// Of the folder or a file, which may be open and without a name.
    fn metadata(&self, ino: INodeNo) -> std::io::Result<Metadata> {
        if ino == INodeNo::ROOT {
            return fs::metadata(&self.root);
        }
        let table = self.table.lock().unwrap();
        match table.open.values().find(|(of, _)| *of == ino.0) {
            Some((_, file)) => file.metadata(),
            None => fs::metadata(self.root.join(table.name(ino.0))),
        }
    }

    fn learn(&self, name: &OsStr) -> std::io::Result<FileAttr> {
        let attr = attributes(&fs::symlink_metadata(self.at(name))?);
        let name = name.to_str().unwrap().to_owned();
        self.table.lock().unwrap().names.insert(attr.ino.0, name);
        Ok(attr)
    }

    fn opened(&self, ino: u64, file: File) -> FileHandle {
        let mut table = self.table.lock().unwrap();
        table.last += 1;
        let handle = table.last;
        table.open.insert(handle, (ino, Arc::new(file)));
        FileHandle(handle)
    }

    /// The name of an open file, and the file.
    fn file(&self, handle: FileHandle) -> (String, Arc<File>) {
        let table = self.table.lock().unwrap();
        let (ino, file) = &table.open[&handle.0];
        (table.name(*ino), Arc::clone(file))
    }
}

impl Table {
    fn name(&self, ino: u64) -> String {
        self.names.get(&ino).cloned().unwrap_or_default()
    }
}

fn attributes(of: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds as u64, nanos as u32)
    };
    let root = of.is_dir();
    FileAttr {
        ino: if root {
            INodeNo::ROOT
        } else {
            INodeNo(of.ino())
        },
        size: of.size(),
        blocks: of.blocks(),
        atime: time(of.atime(), of.atime_nsec()),
        mtime: time(of.mtime(), of.mtime_nsec()),
        ctime: time(of.ctime(), of.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(of.file_type()).unwrap(),
        perm: (of.mode() & 0o7777) as u16,
        nlink: of.nlink() as u32,
        uid: of.uid(),
        gid: of.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

/// Answers with what `result` says.
fn end(reply: ReplyEmpty, result: std::io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e.into()),
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.learn(name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.metadata(ino) {
            Ok(found) => reply.attr(&TTL, &attributes(&found)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let name = self.table.lock().unwrap().name(ino.0);
        let at = self.root.join(&name);
        self.shared.call(Op::Change, &name, move |error| {
            let set = || {
                if let Some(size) = size {
                    OpenOptions::new().write(true).open(&at)?.set_len(size)?;
                }
                if let Some(mode) = mode {
                    fs::set_permissions(&at, fs::Permissions::from_mode(mode))?;
                }
                fs::metadata(&at)
            };
            match (error, set) {
                (Some(error), _) => reply.error(error),
                (None, set) => match set() {
                    Ok(found) => reply.attr(&TTL, &attributes(&found)),
                    Err(e) => reply.error(e.into()),
                },
            }
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let name = self.table.lock().unwrap().name(ino.0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.root.join(name));
        match file {
            Ok(file) => reply.opened(self.opened(ino.0, file), flags()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        wanted: i32,
        reply: ReplyCreate,
    ) {
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).mode(mode);
        open.create_new(wanted & libc::O_EXCL != 0);
        if let Some(error) = self.shared.refusal(Op::Change, name.to_str().unwrap()) {
            return reply.error(error);
        }
        let made = open
            .open(self.at(name))
            .and_then(|file| Ok((file, self.learn(name)?)));
        match made {
            Ok((file, attr)) => {
                let handle = self.opened(attr.ino.0, file);
                reply.created(&TTL, &attr, Generation(0), handle, flags());
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.table.lock().unwrap().open.remove(&handle.0);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (name, file) = self.file(handle);
        self.shared.call(Op::Read, &name, move |error| {
            let mut data = vec![0; size as usize];
            match (error, file.read_at(&mut data, offset)) {
                (Some(error), _) => reply.error(error),
                (None, Ok(len)) => reply.data(&data[..len]),
                (None, Err(e)) => reply.error(e.into()),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (name, file) = self.file(handle);
        let data = data.to_vec();
        self.shared.call(Op::Write, &name, move |error| {
            if let Some(error) = error {
                return reply.error(error);
            }
            match file.write_all_at(&data, offset) {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(e.into()),
            }
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let (name, file) = self.file(handle);
        self.shared.call(Op::Sync, &name, move |error| match error {
            Some(error) => reply.error(error),
            None => end(reply, file.sync_data()),
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.shared.lies_about(mode) {
            return reply.ok();
        }
        let (name, file) = self.file(handle);
        self.shared
            .call(Op::Allocate, &name, move |error| match error {
                Some(error) => reply.error(error),
                None => {
                    let how = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
                    let done = rustix::fs::fallocate(file.as_fd(), how, offset, len);
                    end(reply, done.map_err(Into::into));
                }
            });
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        from: &OsStr,
        _: INodeNo,
        to: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (old, new) = (self.at(from), self.at(to));
        // Known before the answer, which a waiting call gives later.
        let name = to.to_str().unwrap().to_owned();
        if let Ok(found) = fs::metadata(&old) {
            let mut table = self.table.lock().unwrap();
            table.names.insert(found.ino(), name.clone());
        }
        self.shared
            .call(Op::Change, &name, move |error| match error {
                Some(error) => reply.error(error),
                None => end(reply, fs::rename(old, new)),
            });
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let at = self.at(name);
        self.shared.call(
            Op::Change,
            name.to_str().unwrap(),
            move |error| match error {
                Some(error) => reply.error(error),
                None => end(reply, fs::remove_file(at)),
            },
        );
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = fs::read_dir(Path::new(&self.root)).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        for (at, name) in names.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = self.learn(name) else { continue };
            if reply.add(attr.ino, at as u64 + 1, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// A hole wherever there was a lie.
    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match whence {
            libc::SEEK_DATA if self.shared.lies() => reply.error(Errno::from_i32(libc::ENXIO)),
            libc::SEEK_DATA | libc::SEEK_HOLE if self.shared.lies() => reply.offset(offset),
            _ => reply.error(Errno::from_i32(libc::ENOSYS)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 20;
        reply.statfs(blocks, blocks, blocks, blocks, blocks, 4096, 255, 4096);
    }
}
