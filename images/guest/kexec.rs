//! Starts another kernel from the running one, without a reset of the machine and
//! without its firmware.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const KEXEC_FILE_LOAD: c_long = 320;
const START_WHAT_IS_LOADED: c_int = 0x4558_4543;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(what: c_int) -> c_int;
}

/// Returns only if it fails.
pub fn start(kernel: &str, initramfs: &str, options: &str) -> Result<(), String> {
    let open = |path: &str| File::open(path).map_err(|e| format!("{path}: {e}"));
    let (kernel, initramfs) = (open(kernel)?, open(initramfs)?);
    let options = CString::new(options).map_err(|e| e.to_string())?;
    let length = options.as_bytes_with_nul().len() as c_ulong;
    let text: *const c_char = options.as_ptr();
    let no_flags: c_ulong = 0;
    // SAFETY: the descriptors and the text live until the call returns.
    let loaded = unsafe {
        syscall(
            KEXEC_FILE_LOAD,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            length,
            text,
            no_flags,
        )
    };
    if loaded != 0 {
        return Err(format!("kexec_file_load: {}", io::Error::last_os_error()));
    }
    // SAFETY: touches no memory of this process.
    unsafe { reboot(START_WHAT_IS_LOADED) };
    Err(format!("reboot: {}", io::Error::last_os_error()))
}
