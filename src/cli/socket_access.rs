//! The options of `serve` that say who may connect to its sockets.

use clap::Args;

use crate::daemon::AccessRecord;

/// Group and mode of the sockets that the daemon makes.
#[derive(Args, Debug)]
pub struct SocketAccessArgs {
    /// Group whose members can connect to the sockets of the disk and its snapshots, by name or
    /// number [default: none; the sockets have mode 0600]. For a QEMU that another user runs, as
    /// under libvirt: libvirt-qemu in Debian, qemu in Fedora. Recorded in the state file, also for
    /// snapshots that are taken later, like the three that follow.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    socket_group: Option<String>,

    /// Mode of these sockets, in octal [default: 660 with --socket-group, otherwise 600]. The umask
    /// does not apply to it.
    #[arg(long, value_name = "MODE", value_parser = mode)]
    socket_mode: Option<u32>,

    /// Group whose members can connect to the control socket: they can do everything to the disk.
    /// The group of --socket-group cannot.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    control_group: Option<String>,

    /// Mode of the control socket, in octal [default: 660 with --control-group, otherwise 600].
    #[arg(long, value_name = "MODE", value_parser = mode)]
    control_mode: Option<u32>,
}

impl SocketAccessArgs {
    /// For front ends.
    pub fn of_views(&self) -> AccessRecord {
        AccessRecord {
            group: self.socket_group.clone(),
            mode: self.socket_mode,
        }
    }

    pub fn of_control(&self) -> AccessRecord {
        AccessRecord {
            group: self.control_group.clone(),
            mode: self.control_mode,
        }
    }
}

fn group(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Err("is empty: give the name or number of a group".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Octal digits, with or without a leading 0 or 0o.
fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
    mode.filter(|mode| mode & !0o777 == 0 && mode & 0o600 == 0o600)
        .ok_or_else(|| {
            "must be octal, from 600 to 777, with 6 or 7 for the owner; such as 660".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_let_the_owner_in() {
        for text in ["660", "0660", "0o660"] {
            assert_eq!(mode(text), Ok(0o660), "{text}");
        }
        for text in [
            "",
            "0o",
            "+660",
            "668",
            "0x1b0",
            "1777",
            "060",
            "400",
            "rw",
            "77777777777",
        ] {
            assert!(mode(text).unwrap_err().contains("octal"), "{text}");
        }
        assert!(group("").is_err() && group("107").is_ok());
    }
}
