//! The TCP port for metrics.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use super::sockets::announce;
use crate::control::MetricsServer;
use crate::daemon::DaemonError;
use crate::daemon::volume::LiveVolume;

/// Takes the port, before anything else is touched.
///
/// # Errors
/// The port is in use, or not to be had.
pub fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, DaemonError> {
    let Some(address) = address else {
        return Ok(None);
    };
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(DaemonError::Refused(format!(
            "--metrics {address}: the port is in use: stop the process that listens there, or \
             choose another port"
        ))),
        Err(e) => Err(DaemonError::Refused(format!(
            "--metrics {address}: cannot listen there: {e}; choose an address of this machine, \
             and a port that you may use"
        ))),
    }
}

/// Answers there until what this returns is dropped.
///
/// # Errors
/// A system call failed.
pub fn serve(
    listener: Option<TcpListener>,
    volume: &Arc<LiveVolume>,
) -> Result<Option<MetricsServer>, DaemonError> {
    let Some(listener) = listener else {
        return Ok(None);
    };
    let failed = |e| DaemonError::system("serve metrics", e);
    let address = listener.local_addr().map_err(failed)?;
    let server = MetricsServer::start(listener, volume.clone()).map_err(failed)?;
    announce("metrics", &format!("at http://{address}/metrics"));
    Ok(Some(server))
}
