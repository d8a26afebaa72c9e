//! The system calls that the kinds of threads make, and what for. `docs/sandbox.md` says how they
//! were found, and has the same lists, which `filter_tests.rs` compares.

use libc::c_long;

/// Every thread: memory, locks, time, its own end, and the end of the process by a panic.
pub const RUNTIME: &[c_long] = &[
    libc::SYS_brk,               // memory
    libc::SYS_clock_getres,      // time, where the kernel's page does not give it
    libc::SYS_clock_gettime,     // as before
    libc::SYS_clock_nanosleep,   // a pause
    libc::SYS_close,             // the last owner closes, whichever thread that is
    libc::SYS_dup,               // another owner of a descriptor
    libc::SYS_exit,              // the end of a thread
    libc::SYS_exit_group,        // the end of the process
    libc::SYS_fcntl,             // another owner of a descriptor, locks of files, whether to wait
    libc::SYS_futex,             // locks
    libc::SYS_getpid,            // abort, after a panic
    libc::SYS_getrandom,         // keys of hash tables
    libc::SYS_gettid,            // abort, and the stack of a thread
    libc::SYS_gettimeofday,      // time, where the kernel's page does not give it
    libc::SYS_lseek,             // the size of a file
    libc::SYS_madvise,           // memory is given back
    libc::SYS_membarrier,        // locks
    libc::SYS_mmap,              // memory, but not to be executed
    libc::SYS_mprotect,          // as before: heaps and stacks that grow
    libc::SYS_mremap,            // memory
    libc::SYS_munmap,            // memory
    libc::SYS_nanosleep,         // a pause
    libc::SYS_prctl,             // see OPTIONS
    libc::SYS_read,              // flags between threads, and what is open
    libc::SYS_restart_syscall,   // a pause after a stop by a debugger
    libc::SYS_rseq,              // the start of a thread
    libc::SYS_rt_sigaction,      // abort; guest memory that vanishes
    libc::SYS_rt_sigprocmask,    // abort; the start of a thread
    libc::SYS_rt_sigreturn,      // the end of a signal's handler
    libc::SYS_sched_getaffinity, // the stack of a thread; the number of heaps
    libc::SYS_sched_yield,       // locks
    libc::SYS_set_robust_list,   // the start of a thread
    libc::SYS_sigaltstack,       // the start of a thread: a stack for its overflow
    libc::SYS_tgkill,            // abort: a signal to this process
    libc::SYS_write,             // flags between threads, the log, and what is open
    libc::SYS_writev,            // the log
];

/// The log: the journal takes lines as datagrams, and large ones as files in memory.
pub const LOG: &[c_long] = &[
    libc::SYS_memfd_create, // a large line
    libc::SYS_sendmsg,      // its descriptor
    libc::SYS_sendto,       // a line
];

/// Threads: they are started, and their system calls limited.
pub const THREADS: &[c_long] = &[
    libc::SYS_clone,   // a thread, but no process
    libc::SYS_clone3,  // answered with ENOSYS by another filter, which a list must not hide
    libc::SYS_seccomp, // the filter of the new thread
];

/// Waiting for flags, sockets and disks.
pub const WAITING: &[c_long] = &[
    libc::SYS_epoll_ctl, // what is waited for
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
];

/// Reading, writing and flushing disks and COWs that are open.
pub const STORAGE: &[c_long] = &[
    libc::SYS_fallocate, // zeroes, and space that is given back
    libc::SYS_fdatasync, // a flush
    libc::SYS_fstat,     // the size of a file
    libc::SYS_fsync,     // a flush, also of a folder
    libc::SYS_pread64,   // a read
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64, // a write
    libc::SYS_pwritev,
    libc::SYS_pwritev2, // a write that is durable
];

/// A ring that exists.
pub const RING: &[c_long] = &[
    libc::SYS_io_uring_enter,    // operations; the ring limits which
    libc::SYS_io_uring_register, // the ring is enabled
];

/// Making rings and flags.
pub const MAKING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_io_uring_setup,
    libc::SYS_pipe2,
    libc::SYS_socketpair, // between threads
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// What the system says of the process.
pub const PROCESS: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_prlimit64, // the limit of descriptors, for metrics, but not to change it
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Looking at files, and opening them to read them: `/proc`, `/sys`, what is left of a COW.
pub const LOOKING: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat, // whether a user may use a file
    libc::SYS_faccessat2,
    libc::SYS_fgetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64, // the content of a folder
    libc::SYS_getxattr,   // marks at disks and state files
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_openat, // to read only, for kinds that change no files
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_statfs, // the kind of a file system, and its free space
    libc::SYS_statx,
];

/// Making, changing and removing files: state file, COWs, records, sockets.
pub const CHANGING: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmod, // the mode of a new file
    libc::SYS_fchmodat,
    libc::SYS_fchown, // the group of a socket
    libc::SYS_fchownat,
    libc::SYS_flock, // one daemon for a state file
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_ftruncate,         // the size of a new COW
    libc::SYS_ioctl,             // see IOCTLS
    libc::SYS_landlock_add_rule, // fewer files
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    libc::SYS_mkdirat, // a folder for the state file or for records
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_removexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    libc::SYS_renameat2, // a state file is replaced
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    libc::SYS_setxattr, // marks at disks and state files
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    libc::SYS_symlinkat, // a daemon with a control socket elsewhere is found by a link
    libc::SYS_umask,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat, // sockets, and COWs that were not completed
];

/// Talking at a socket.
pub const SOCKETS: &[c_long] = &[
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt, // who is at the other end
    libc::SYS_recvfrom,
    libc::SYS_recvmsg, // with the descriptors of guest memory
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Listening at a socket that exists.
pub const ACCEPTING: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_ioctl, // see IOCTLS
];

/// Making and connecting sockets: views, monitors, other daemons, the service manager.
pub const CONNECTING: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_ioctl, // see IOCTLS
    libc::SYS_listen,
    libc::SYS_socket, // Unix sockets only
];

/// What `prctl` may do.
pub const OPTIONS: &[i32] = &[
    libc::PR_GET_NAME,
    libc::PR_SET_NAME,         // the start of a thread
    libc::PR_SET_NO_NEW_PRIVS, // before each filter
    libc::PR_SET_VMA,          // names of heaps
    PR_GET_AUXV,               // the length of a tick, for metrics
];

/// From linux/prctl.h.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// What `ioctl` may do, by the numbers of linux/fs.h and asm-generic/ioctls.h: those of `FICLONE`
/// and the like are not among them.
pub const IOCTLS: &[i32] = &[
    0x1268,                        // BLKSSZGET: the blocks of a device
    0x127b,                        // BLKPBSZGET: as before
    0x8008_1272_u32.cast_signed(), // BLKGETSIZE64: its size
    0x5401,                        // TCGETS: whether the log is a terminal
    0x5421,                        // FIONBIO: whether a socket is waited for
    0x541b,                        // FIONREAD: whether a front end has sent something
];

/// Calls that only an intruder makes: the end of the process is the smaller evil.
pub const DEADLY: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];
