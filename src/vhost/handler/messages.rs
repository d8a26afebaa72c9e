//! What each message changes.

use std::fs::File;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::{EVENT_IDX, Handler, PROTOCOL, refusal};
use crate::vhost::MAX_QUEUE_SIZE;
use crate::vhost::backing::UNSHARED;
use crate::vhost::feature_names;
use crate::vhost::inflight::InflightRegion;
use crate::vhost::memory::MAX_REGIONS;
use crate::vhost::notify::{Notifier, check_eventfd};
use crate::vhost::queue::RingAddresses;
use crate::virtio_blk::ConfigSpace;

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated in the protocol; disables all rings.
    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all();
        Ok(())
    }

    /// The device is as after the connection began. The call and error descriptors stay,
    /// because front ends pass them once, before the first start.
    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.detector.told();
        self.features &= PROTOCOL;
        self.update_write_through();
        self.inflight = None;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.logged_data_changes();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            let names = feature_names::of(unknown);
            return Err(refusal(format!("features {names} were not offered")));
        }
        let ring_format_changes = (features ^ self.features) & EVENT_IDX != 0;
        if ring_format_changes {
            self.pause();
        }
        self.features = features;
        self.update_write_through();
        self.logged_data_changes();
        if ring_format_changes {
            self.resume();
        }
        if features & PROTOCOL == 0 {
            // Without protocol features there is no message that enables rings.
            for index in 0..self.queues.len() {
                self.queue(index)?.enabled = true;
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.change_memory(|memory| memory.set(regions, files))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let is_right = |size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE;
        let Some(size) = u16::try_from(num).ok().filter(is_right) else {
            self.is_unusable(index, |queue| queue.size = 0);
            // A guest may choose a size that is offered; the front end offers it.
            self.guests_fault &= num <= u32::from(MAX_QUEUE_SIZE);
            return Err(refusal(format!(
                "a ring of {num} entries; a power of two up to {MAX_QUEUE_SIZE} is needed"
            )));
        };
        self.change(to_index(index), |queue| {
            queue.size = size;
            Ok(())
        })
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses {
            descriptors: descriptor,
            available,
            used,
        };
        for user in [descriptor, used, available] {
            if self.memory.guest_address(user).is_none() {
                self.is_unusable(index, |queue| queue.addresses = None);
                return Err(refusal(format!(
                    "the ring address {user:#x} is not in guest memory; {UNSHARED}"
                )));
            }
        }
        let used_log = flags
            .contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG)
            .then_some(log);
        self.log_used_ring(to_index(index), used_log)?;
        if self.queue(to_index(index))?.addresses == Some(addresses) {
            return Ok(());
        }
        self.change(to_index(index), |queue| {
            queue.addresses = Some(addresses);
            Ok(())
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            self.is_unusable(index, |queue| queue.addresses = None);
            self.guests_fault = false;
            return Err(refusal(format!(
                "a ring base of {base} has more than 16 bits"
            )));
        };
        self.change(to_index(index), |queue| {
            queue.base = base;
            Ok(())
        })
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let place = to_index(index);
        // The answer has no form of a refusal.
        self.queue(place).map_err(|_| Error::InvalidParam)?;
        self.stop(place);
        if self.undone {
            // The view ends. A front end that loses its connection does not rely on the
            // ring's state.
            return Err(Error::InvalidParam);
        }
        let queue = self.queue(place).map_err(|_| Error::InvalidParam)?;
        queue.kick = None;
        queue.call.set(None);
        Ok(VhostUserVringState::new(index, u32::from(queue.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.ok_or_else(|| refusal("polling instead of kicks is not supported".into()))?;
        check_eventfd(&kick).map_err(Error::ReqHandlerError)?;
        self.change(usize::from(index), |queue| {
            queue.kick = Some(Arc::new(kick));
            Ok(())
        })
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let notifier = fd
            .map(Notifier::new)
            .transpose()
            .map_err(Error::ReqHandlerError)?;
        let queue = self.queue(usize::from(index))?;
        queue.call.set(notifier);
        if queue.worker.is_some() {
            // A signal to the old descriptor may have been missed.
            queue.call.notify();
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let notifier = fd
            .map(Notifier::new)
            .transpose()
            .map_err(Error::ReqHandlerError)?;
        self.change(usize::from(index), |queue| {
            queue.err = notifier.map(Arc::new);
            Ok(())
        })
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(refusal(format!(
                "protocol features {unknown:#x} were not offered"
            )));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.view.config.max_queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = to_index(index);
        self.queue(index)?.enabled = enable;
        if enable {
            self.start(index)
        } else {
            self.stop(index);
            Ok(())
        }
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(self.view.space.read(offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let on = ConfigSpace::asked_writeback(offset, buf);
        let on = on.map_err(|e| refusal(e.to_string()))?;
        self.set_write_cache(on)
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("shared objects were not offered"))
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        InflightRegion::create(queues, size, self.queues.len()).map_err(|e| {
            self.warn(format_args!("{e}"));
            // The answer has no form of a refusal.
            Error::InvalidParam
        })
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let region = InflightRegion::open(inflight, file, self.queues.len()).map_err(|e| {
            self.warn(format_args!("{e}"));
            Error::ReqHandlerError(e)
        })?;
        self.pause();
        self.inflight = Some(region);
        self.resume();
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(u64::try_from(MAX_REGIONS).unwrap_or(u64::MAX))
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.change_memory(|memory| memory.add(region, fd))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.change_memory(|memory| memory.remove(region))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("device state was not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("device state was not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("shared memory was not offered"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        self.replace_log(log, file).map_err(|e| {
            self.warn(format_args!("{e}"));
            // The answer has no form of a refusal.
            Error::InvalidParam
        })
    }
}

fn to_index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
