//! The daemon's entry among those of its user, by which clients find it without its path.

use super::options::ServeOptions;
use crate::control::ControlSocket;
use crate::control::registry::{Noted, Registry, RegistryError, Wish};
use crate::daemon::DaemonError;
use crate::socket_access::SocketAccess;

/// Gives the daemon an entry, and a control socket if it has none. Without an entry it can be
/// served all the same, unless the user has chosen the name.
pub fn list(
    options: &ServeOptions,
    access: SocketAccess,
    control: &mut Option<ControlSocket>,
) -> Result<Option<Noted>, DaemonError> {
    let Some(wish) = &options.listed_as else {
        return Ok(None);
    };
    let registry = Registry::of_this_user();
    let Some(given) = control else {
        match registry.bind(wish, access) {
            Ok(bound) => *control = Some(bound),
            Err(error) => {
                refuse(wish, &error)?;
                tracing::warn!(
                    "there is no control socket: {error}. Choose a path by --control, or give --no-control if none is \
                     needed"
                );
            }
        }
        return Ok(None);
    };
    // Others cannot connect to a socket without a path.
    let Some(place) = given.place() else {
        return Ok(None);
    };
    match registry.note(wish, &place) {
        Ok(noted) => Ok(Some(noted)),
        Err(error) => {
            refuse(wish, &error)?;
            tracing::info!("`snapback list` will not show this daemon: {error}");
            Ok(None)
        }
    }
}

/// Whether [`list`] would be refused, as far as can be told without it.
pub fn look(options: &ServeOptions) -> Result<(), DaemonError> {
    match &options.listed_as {
        Some(wish @ Wish::Exactly(_)) => Registry::of_this_user()
            .look(wish)
            .or_else(|error| refuse(wish, &error)),
        Some(Wish::Like(_)) | None => Ok(()),
    }
}

/// A name that was asked for and cannot be had is not replaced by another.
fn refuse(wish: &Wish, error: &RegistryError) -> Result<(), DaemonError> {
    match wish {
        Wish::Exactly(name) => Err(DaemonError::Refused(format!(
            "--control-name {name}: {error}"
        ))),
        Wish::Like(_) => Ok(()),
    }
}
