//! The options of `serve` for metrics.

use std::net::SocketAddr;

use clap::Args;

/// Where metrics can be read, beside the control socket.
#[derive(Args, Debug)]
pub struct Metrics {
    /// Also serve metrics for Prometheus over TCP, at http://ADDR:PORT/metrics, such as
    /// 127.0.0.1:9750. Nothing else is served there. Not recorded in the state file.
    #[arg(long = "metrics", value_name = "ADDR:PORT")]
    address: Option<SocketAddr>,

    /// Allow an address that other machines can reach. Who reaches it can read the names of
    /// snapshots, the paths of sockets and all counters; there is no password.
    #[arg(long, requires = "address")]
    metrics_any_address: bool,
}

impl Metrics {
    /// # Errors
    /// Others could read the metrics, and nobody has allowed it.
    pub fn address(&self) -> Result<Option<SocketAddr>, String> {
        match self.address {
            Some(address) if !address.ip().is_loopback() && !self.metrics_any_address => {
                Err(format!(
                    "--metrics {address}: other machines could read the metrics there: give an \
                     address of this machine alone, such as 127.0.0.1:{}, or add \
                     --metrics-any-address",
                    address.port()
                ))
            }
            address => Ok(address),
        }
    }
}
