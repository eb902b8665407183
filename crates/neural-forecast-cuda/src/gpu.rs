//! Facts about one GPU, read once when it opens; holding them is the licence to choose kernels.
//!
//! Plain data: opening and talking to the GPU is `driver`'s.

/// What kernels are chosen by.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Number among the driver's devices.
    pub ordinal: usize,
    /// The maker's name.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory that one block may ask for.
    pub shared_bytes_max: u32,
    /// Bytes of level-2 cache.
    pub l2_bytes: u64,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Most blocks of a cluster with [`Gpu::shared_bytes_max`] each: 0 where clusters do not exist,
    /// 8 or 16 where they do.
    pub cluster_max: u32,
    /// Whether a grid may wait for itself.
    pub cooperative: bool,
}

impl Gpu {
    /// The facts of a data-centre GPU of this compute capability (A100, or H200 from 9.0 on), for
    /// what is asked without a device.
    pub fn typical(compute_capability: (u32, u32)) -> Gpu {
        let hopper = compute_capability >= (9, 0);
        Gpu {
            ordinal: 0,
            name: if hopper { "H200" } else { "A100" }.into(),
            compute_capability,
            multiprocessors: if hopper { 132 } else { 108 },
            shared_bytes_max: if hopper { 227 << 10 } else { 163 << 10 },
            l2_bytes: if hopper { 60 << 20 } else { 40 << 20 },
            memory_bytes: if hopper { 141_000_000_000 } else { 80_000_000_000 },
            cluster_max: if hopper { 16 } else { 0 },
            cooperative: true,
        }
    }

    /// Whether kernels built for `sm_90a` run here.
    pub fn is_hopper(&self) -> bool {
        self.compute_capability == (9, 0)
    }

    /// Whether the tensor cores multiply 8-bit floats.
    pub fn has_fp8(&self) -> bool {
        self.compute_capability >= (8, 9)
    }
}
