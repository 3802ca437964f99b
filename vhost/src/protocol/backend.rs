//! The device as the `vhost` crate's message handler sees it.

use std::fs::File;
use std::sync::{Mutex, MutexGuard};

use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};

use crate::device::{Device, Refusal};
use crate::memory::{FrontendVa, MAX_REGIONS, RegionInfo};
use crate::vring::layout::RingAddr;

/// The crate's view of the device.
pub(crate) struct Backend {
    pub device: Device,
}

/// The device, also after a panic of whoever had it: it is reset before anybody uses it again.
pub(crate) fn lock(backend: &Mutex<Backend>) -> MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(|poisoned| {
        backend.clear_poison();
        poisoned.into_inner()
    })
}

impl Backend {
    fn run<T>(&mut self, request: impl FnOnce(&mut Device) -> std::result::Result<T, Refusal>) -> Result<T> {
        request(&mut self.device).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::ReqHandlerError(std::io::Error::other(refusal))
}

fn not_offered<T>(what: &'static str) -> Result<T> {
    Err(refused(Refusal::NotOffered(what)))
}

fn region_info(region: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        gpa: region.guest_phys_addr,
        len_bytes: region.memory_size,
        frontend_va: region.user_addr,
        file_offset: region.mmap_offset,
    }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // Deprecated; what frontends that still send it mean by it is "stop the rings".
        self.run(Device::stop_all)
    }

    fn reset_device(&mut self) -> Result<()> {
        self.run(Device::reset_device)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.offer().features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.run(|device| device.set_features(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(region_info).zip(files).collect();
        self.run(|device| device.set_memory(regions)).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.run(|device| device.set_size(index, num))
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
        let addr =
            RingAddr { desc: FrontendVa(descriptor), avail: FrontendVa(available), used: FrontendVa(used) };
        let logged_at = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        self.run(|device| device.set_addr(index, addr, logged_at))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.run(|device| device.set_base(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.run(|device| device.stop_ring(index))?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.run(|device| device.kick(u32::from(index)))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.run(|device| device.set_call(u32::from(index), fd))
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.run(|device| device.check_ring(u32::from(index)))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::from_bits_truncate(self.device.offer().protocol))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.run(|device| device.set_protocol_features(features))
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // Queue pairs, as QEMU and DPDK count.
        Ok(self.device.offer().n_pairs.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.run(|device| device.enable(index, enable))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        let info = region_info(region);
        self.run(|device| device.add_memory(info, &fd)).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let info = region_info(region);
        self.run(|device| device.remove_memory(info))
    }

    // Never reached: none of these is offered, or `route` hands them to the table of our own.

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        not_offered("CONFIG")
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        not_offered("CONFIG")
    }

    fn set_gpu_socket(&mut self, _: vhost::vhost_user::GpuBackend) -> Result<()> {
        not_offered("a GPU")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered("SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered("INFLIGHT_SHMFD")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered("INFLIGHT_SHMFD")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        not_offered("DEVICE_STATE")
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered("DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered("SHMEM")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered("LOG_SHMFD")
    }
}
