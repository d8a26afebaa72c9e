//! QEMU's options for what a guest boots and which disks it has.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::bench::guest_images;
use crate::guest::Attach;

/// QEMU's options to load Debian's kernel without a boot loader. The kernel does not check
/// the timer's interrupt: emulated on a busy host it comes late, and a guest hung then.
pub fn kernel(initramfs: &Path, kernel_options: &str) -> Vec<OsString> {
    let options = format!("console=ttyS0 quiet panic=-1 no_timer_check {kernel_options}");
    let vmlinuz = guest_images().join("vmlinuz");
    vec![
        "-kernel".into(),
        vmlinuz.into(),
        "-initrd".into(),
        initramfs.into(),
        "-append".into(),
        options.into(),
    ]
}

pub fn attach(command: &mut Command, disks: &[Attach]) {
    for (index, disk) in disks.iter().enumerate() {
        match disk {
            Attach::View(socket) | Attach::TwoQueues(socket) | Attach::Queues(socket, _) => command
                .arg("-chardev")
                .arg(format!(
                    "socket,id=c{index},path={},reconnect=1",
                    socket.display()
                ))
                .arg("-device")
                .arg(format!(
                    "vhost-user-blk-pci,chardev=c{index},num-queues={}",
                    queues(disk)
                )),
            Attach::Listening(socket) => command
                .arg("-chardev")
                .arg(format!(
                    "socket,id=c{index},path={},server=on,wait=on",
                    socket.display()
                ))
                .arg("-device")
                .arg(format!("vhost-user-blk-pci,chardev=c{index},num-queues=1")),
            Attach::Raw(path) | Attach::RawDiscard(path) => command
                .arg("-drive")
                .arg(format!(
                    "if=none,id=d{index},format=raw,file={}{}",
                    path.display(),
                    match disk {
                        Attach::RawDiscard(_) => ",discard=unmap",
                        _ => "",
                    }
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=d{index}")),
        };
    }
}

pub const fn queues(disk: &Attach) -> u16 {
    match disk {
        Attach::Queues(_, count) => *count,
        Attach::TwoQueues(_) => 2,
        Attach::View(_) | Attach::Listening(_) | Attach::Raw(_) | Attach::RawDiscard(_) => 1,
    }
}
