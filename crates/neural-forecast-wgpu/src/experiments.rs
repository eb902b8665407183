//! wgpu's consent form for features that are not specified yet: the only unsafe code of the crate.

/// Says that experimental features are wanted.
pub(crate) fn wanted() -> wgpu::ExperimentalFeatures {
    // SAFETY: the contract is to accept that wgpu's experimental code may have faults that lead to
    // undefined behaviour, and to report those found. What is used of it is kept small: matrices of
    // subgroups alone, in one kernel, in one configuration that the adapter lists, with loads and
    // stores that stay within workgroup memory that the tile is made for (`linear::Tile`), and only
    // after a trial on the device itself (`trial`).
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
