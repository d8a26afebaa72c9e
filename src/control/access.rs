//! Who may do what at the control socket.
//!
//! The mode of the socket decides who can connect. Whoever can may read; a change needs the
//! permission of this rule, which looks at the user that the kernel names for the connection.

use super::api::{ApiError, ErrorKind};
use super::peer::Peer;

/// A user that `--control-allow` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Everybody who can connect.
    All,
    User(u32),
}

/// The users that may change something, besides root and the daemon's own user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(pub Vec<Allowed>);

impl Access {
    /// # Errors
    /// The peer may not change anything.
    pub fn check(&self, peer: Peer) -> Result<(), ApiError> {
        let is_listed = |allowed: &Allowed| match allowed {
            Allowed::All => true,
            Allowed::User(uid) => *uid == peer.uid,
        };
        if is_trusted(peer) || self.0.iter().any(is_listed) {
            return Ok(());
        }
        let message = format!(
            "user {} may read but not change anything: run this as the daemon's user, or start \
             the daemon with --control-allow {}",
            peer.uid, peer.uid
        );
        Err(ApiError::new(ErrorKind::Forbidden, message))
    }
}

/// Root, or the daemon's own user.
pub fn is_trusted(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_daemons_user_and_those_on_the_list_may_change_things() {
        let own = rustix::process::geteuid().as_raw();
        let peer = |uid| Peer { uid, pid: None };
        let nobody = Access::default();
        assert_eq!(nobody.check(peer(0)), Ok(()));
        assert_eq!(nobody.check(peer(own)), Ok(()));
        let other = own + 4711;
        let refused = nobody.check(peer(other)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Forbidden);
        assert!(
            refused.message.contains(&other.to_string()),
            "{}",
            refused.message
        );
        let listed = Access(vec![Allowed::User(other)]);
        assert_eq!(listed.check(peer(other)), Ok(()));
        assert!(listed.check(peer(other + 1)).is_err());
        assert_eq!(Access(vec![Allowed::All]).check(peer(other)), Ok(()));
    }
}
