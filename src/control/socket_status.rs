//! Who may connect to the sockets, as the status shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who may connect to the sockets that the daemon makes; `null`: its own user only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketAccess {
    /// To the sockets for front ends (`--socket-group`, `--socket-mode`).
    pub sockets: Option<GroupAndMode>,
    /// To the control socket (`--control-group`, `--control-mode`).
    pub control: Option<GroupAndMode>,
}

/// The group and mode of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupAndMode {
    /// Name or number, as it was given; `null`: the daemon's own.
    pub group: Option<String>,
    /// Permission bits, in octal.
    pub mode: String,
}
