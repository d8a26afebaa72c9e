//! The front end's side: negotiation, where the rings go on, the in-flight region.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::guest::{Guest, Resume};
use super::region::Region;
use super::ring::{RING_BYTES, Ring};
use super::server::compares;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL: u64 = 1 << 30;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const WRITE_ZEROES: u64 = 1 << 14;
const FLUSH: u64 = 1 << 9;

/// How long a front end that resumes at `avail` waits before it offers again what it
/// has given up, if nobody completes it.
const AGAIN: Duration = Duration::from_secs(10);
/// The same when another back end is looked at only.
const AGAIN_OTHER: Duration = Duration::from_millis(20);

impl Guest {
    /// Connects as QEMU does. `before` hears of each message. An error: the back end
    /// hung up meanwhile, or refused something.
    pub fn connect(&mut self, mut before: impl FnMut()) -> Result<(), String> {
        let failed = |what: &'static str| move |e: vhost::Error| format!("{what}: {e}");
        self.looked = false;
        let mut frontend = self.wait_for_socket()?;
        let f = &mut frontend;
        before();
        let offered = f.get_features().map_err(failed("GET_FEATURES"))?;
        let wanted = self.features();
        if wanted & !offered != 0 {
            return Err(format!("features {:#x} are not offered", wanted & !offered));
        }
        // The library believes only what was acknowledged; QEMU needs no answer here.
        f.set_features(wanted).map_err(failed("SET_FEATURES"))?;
        before();
        let offered_protocol = f
            .get_protocol_features()
            .map_err(failed("GET_PROTOCOL_FEATURES"))?;
        let mut protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG;
        if self.with_region {
            protocol |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        if !offered_protocol.contains(protocol) {
            let missing = protocol - offered_protocol;
            return Err(format!("the back end does not offer {missing:?}"));
        }
        before();
        f.set_protocol_features(protocol)
            .map_err(failed("SET_PROTOCOL_FEATURES"))?;
        f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        before();
        f.set_owner().map_err(failed("SET_OWNER"))?;
        before();
        f.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
            .map_err(failed("GET_CONFIG"))?;
        self.start_rings(&mut frontend, wanted, &mut before)?;
        self.frontend = Some(frontend);
        self.last_progress = Instant::now();
        Ok(())
    }

    fn wait_for_socket(&self) -> Result<Frontend, String> {
        let start = Instant::now();
        loop {
            match Frontend::connect(&self.socket, 16) {
                Ok(frontend) => return Ok(frontend),
                Err(e) if start.elapsed() > Duration::from_secs(20) => {
                    return Err(format!("{}: {e}", self.socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn start_rings(
        &mut self,
        frontend: &mut Frontend,
        features: u64,
        before: &mut impl FnMut(),
    ) -> Result<(), String> {
        let failed = |what: &'static str| move |e: vhost::Error| format!("{what}: {e}");
        if self.with_region {
            before();
            if self.region.is_none() {
                self.region = Some(Region::get(frontend, &self.shape)?);
            }
            before();
            if let Some(region) = &self.region {
                region.set(frontend, &self.shape)?;
            }
        }
        for ring in &self.rings {
            before();
            frontend
                .set_vring_call(ring.index, &ring.call)
                .map_err(failed("SET_VRING_CALL"))?;
        }
        before();
        frontend
            .set_features(features)
            .map_err(failed("SET_FEATURES"))?;
        before();
        let host = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let table = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.shape.queues as u64 * RING_BYTES,
            userspace_addr: host,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        frontend
            .set_mem_table(&[table])
            .map_err(failed("SET_MEM_TABLE"))?;
        for ring in &self.rings {
            let index = ring.index;
            before();
            frontend
                .set_vring_num(index, self.shape.ring_size())
                .map_err(failed("SET_VRING_NUM"))?;
            let base = match self.resume {
                _ if self.was_reset => 0,
                Resume::Used => self.bases[index],
                Resume::Avail => ring.avail,
            };
            frontend
                .set_vring_base(index, base)
                .map_err(failed("SET_VRING_BASE"))?;
            let [descriptors, avail, used] = ring.addresses().map(|at| host + at.0);
            let addresses = VringConfigData {
                queue_max_size: self.shape.ring_size(),
                queue_size: self.shape.ring_size(),
                flags: 0,
                desc_table_addr: descriptors,
                avail_ring_addr: avail,
                used_ring_addr: used,
                log_addr: None,
            };
            frontend
                .set_vring_addr(index, &addresses)
                .map_err(failed("SET_VRING_ADDR"))?;
            before();
            // QEMU's descriptor is readable at each start.
            ring.kick.write(1).unwrap();
            frontend
                .set_vring_kick(index, &ring.kick)
                .map_err(failed("SET_VRING_KICK"))?;
        }
        let gives_up = self.resume == Resume::Avail && !self.with_region && !self.was_reset;
        if gives_up {
            let flights = self.flights.iter_mut().flatten().flatten();
            flights.for_each(|flight| flight.lost = true);
            let wait = if compares() { AGAIN_OTHER } else { AGAIN };
            self.offer_again = Some(Instant::now() + wait);
        }
        for index in 0..self.rings.len() {
            before();
            frontend
                .set_vring_enable(index, true)
                .map_err(failed("SET_VRING_ENABLE"))?;
        }
        self.was_reset = false;
        Ok(())
    }

    /// Stops the rings without leaving, and lets empty ones start for a driver that
    /// knows these features. For a guest that has nothing under way.
    pub fn reset(&mut self, knows: u64, before: &mut impl FnMut()) -> Result<(), String> {
        assert_eq!(self.under_way(), 0, "{}: requests are under way", self.name);
        let mut frontend = self.frontend.take().ok_or("it is not connected")?;
        for index in 0..self.rings.len() {
            before();
            frontend
                .set_vring_enable(index, false)
                .map_err(|e| format!("SET_VRING_ENABLE: {e}"))?;
            before();
            frontend
                .get_vring_base(index)
                .map_err(|e| format!("GET_VRING_BASE: {e}"))?;
        }
        self.rings.iter_mut().for_each(Ring::clear);
        self.region = None;
        self.was_reset = true;
        let features = self.features() & knows;
        self.start_rings(&mut frontend, features, before)?;
        self.frontend = Some(frontend);
        Ok(())
    }

    /// Of the system's driver.
    fn features(&self) -> u64 {
        let zeroes = if self.disk.zeroes { WRITE_ZEROES } else { 0 };
        let event_idx = if self.shape.event_idx { EVENT_IDX } else { 0 };
        VERSION_1 | PROTOCOL | INDIRECT | FLUSH | zeroes | event_idx
    }
}
