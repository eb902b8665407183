//! What wgpu asks a promise for: the only unsafe code of the crate.

/// Says that experimental features are wanted.
pub(crate) fn wanted() -> wgpu::ExperimentalFeatures {
    // SAFETY: the contract is to accept that wgpu's experimental code may have faults that lead to
    // undefined behaviour, and to report those found. What is used of it is kept small: matrices of
    // subgroups alone, in one kernel, in one configuration that the adapter lists, with loads and
    // stores that stay within workgroup memory that the tile is made for (`linear::Tile`), and only
    // after a trial on the device itself (`trial`).
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// The driver's cache of pipelines, with what one of the same driver gave out before.
///
/// What it is given must be what [`crate::cache`] read: whole and of this driver.
pub(crate) fn pipeline_cache(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor =
        wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: false };
    // SAFETY: the contract is that `data` came from `PipelineCache::get_data`. A file is only read
    // if its checksum and its maker are those that were written with such data; wgpu checks its own
    // header beside that. Who can put a file with a right checksum into the folder could as well
    // replace the program, which the documentation of the option says.
    unsafe { device.create_pipeline_cache(&descriptor) }
}
