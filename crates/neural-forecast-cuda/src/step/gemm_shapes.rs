//! The tiles of Hopper's product kernels: what they hold, and how long they take.
//!
//! Says which of them is the fastest for a product; the products are `gemm_hopper`'s.

use super::gemm_hopper::ROW_BYTES;
use crate::gpu::Gpu;
use crate::launch::{Arguments, Launch};

/// How the blocks of a kernel divide the work: `Shape` of `ptx/gemm_hopper.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    /// In the kernel's name.
    pub(super) name: &'static str,
    /// 64-row blocks of a warpgroup.
    pub(super) blocks: usize,
    pub(super) columns: usize,
    /// Warpgroups that multiply.
    pub(super) groups: usize,
    /// Whether each warpgroup has tiles of its own.
    pub(super) alternate: bool,
    pub(super) stages: usize,
    pub(super) cluster: usize,
    /// Rows of W for one of K in a stage.
    pub(super) w_parts: usize,
    /// Microseconds of a launch, of a block of K, and of what follows the last: fitted to the
    /// times of thirteen products of 512 to 8192 rows (H200, 2026-11-21), within a fifth.
    pub(super) launch_us: f64,
    pub(super) block_us: f64,
    pub(super) end_us: f64,
    /// Of `ptx/gemm_slim_hopper.cuh`: a tile a block, written without tensor copies.
    pub(super) slim: bool,
    /// Whether the activation is in the kernel's name.
    pub(super) kinds: bool,
    /// Whether a norm is made up for (NORMED), which takes the sums of W's rows.
    pub(super) normed: bool,
}

/// Two warpgroups alternate on 128 by 128: one multiplies while the other writes its results.
/// Blocks in pairs share what they read of W.
pub(super) const LARGE: Shape = Shape {
    name: "large",
    blocks: 2,
    columns: 128,
    groups: 2,
    alternate: true,
    stages: 5,
    cluster: 2,
    w_parts: 1,
    launch_us: 4.5,
    block_us: 0.37,
    end_us: 0.0,
    slim: false,
    kinds: true,
    normed: false,
};

/// For a few hundred rows: every multiprocessor has a tile, and reads as little as may be for it.
pub(super) const WIDE: Shape = Shape {
    name: "wide",
    blocks: 1,
    columns: 192,
    groups: 1,
    alternate: false,
    stages: 5,
    cluster: 1,
    w_parts: 1,
    launch_us: 2.3,
    block_us: 0.25,
    end_us: 1.0,
    slim: false,
    kinds: true,
    normed: false,
};

/// For few rows or few columns.
pub(super) const SMALL: Shape = Shape {
    name: "small",
    blocks: 1,
    columns: 64,
    groups: 1,
    alternate: false,
    stages: 8,
    cluster: 1,
    w_parts: 1,
    launch_us: 2.3,
    block_us: 0.122,
    end_us: 0.35,
    slim: false,
    kinds: true,
    normed: false,
};

/// F32: two warpgroups on 64 by 128 each, one below the other, so that one multiplies while the
/// other splits its next numbers or closes a sum.
pub(super) const PAIR_F32: Shape = Shape {
    name: "pair",
    blocks: 1,
    columns: 128,
    groups: 2,
    alternate: false,
    stages: 4,
    cluster: 1,
    w_parts: 2,
    launch_us: 2.3,
    block_us: 0.9,
    end_us: 2.8,
    slim: false,
    kinds: true,
    normed: false,
};

/// F32, for few rows or few columns.
pub(super) const SMALL_F32: Shape = Shape {
    name: "small",
    blocks: 1,
    columns: 64,
    groups: 1,
    alternate: false,
    stages: 8,
    cluster: 1,
    w_parts: 2,
    launch_us: 2.3,
    block_us: 0.335,
    end_us: 0.9,
    slim: false,
    kinds: true,
    normed: false,
};

/// For few hundred rows of widths that they divide: more multiprocessors have a tile, of which each
/// reads less, and results go straight to memory.
pub(super) const SLIM_48: Shape = Shape {
    name: "slim48",
    columns: 48,
    stages: 10,
    block_us: 0.135,
    end_us: 0.0,
    slim: true,
    kinds: false,
    ..SMALL
};
pub(super) const SLIM_144: Shape = Shape {
    name: "slim144",
    columns: 144,
    stages: 7,
    block_us: 0.2,
    end_us: 0.4,
    slim: true,
    kinds: false,
    ..SMALL
};

/// Of products that make up for a norm, whose kernels are an encoder's.
pub(super) const NORMED: [Shape; 3] = [
    Shape { name: "normed_large", normed: true, ..LARGE },
    Shape { name: "normed144", stages: 8, kinds: true, normed: true, ..SLIM_144 },
    Shape {
        name: "normed192",
        columns: 192,
        block_us: 0.25,
        end_us: 0.8,
        kinds: true,
        normed: true,
        ..SLIM_144
    },
];

/// Of products that describe the residual stream for those.
pub(super) const STREAM_48: Shape = Shape { name: "stream48", stages: 12, ..SLIM_48 };
pub(super) const STREAM_64: Shape =
    Shape { name: "stream64", columns: 64, block_us: 0.122, end_us: 0.35, ..STREAM_48 };

impl Shape {
    pub(super) const fn group_rows(&self) -> usize {
        64 * self.blocks
    }

    /// Rows of a block's tile.
    pub(super) const fn rows(&self) -> usize {
        if self.alternate { self.group_rows() } else { self.group_rows() * self.groups }
    }

    pub(super) const fn threads(&self) -> u32 {
        if self.groups > 1 { self.groups as u32 * 128 + 128 } else { 160 }
    }

    pub(super) const fn shared_bytes(&self) -> u32 {
        let stage = (self.rows() + self.w_parts * self.columns) * ROW_BYTES;
        let numbers = self.columns * if self.normed { 8 } else { 4 };
        if self.slim {
            let beside = if self.normed { numbers } else { 0 };
            return (self.stages * (stage + 16) + beside) as u32;
        }
        let own = 2 * self.group_rows() * ROW_BYTES + numbers;
        (self.stages * stage + self.groups * own + self.stages * 16) as u32
    }

    /// How often tiles of a cluster fit into the rows and the columns.
    pub(super) const fn tiles(&self, m: usize, n: usize) -> (usize, usize) {
        (m.div_ceil(self.rows() * self.cluster), n.div_ceil(self.columns))
    }

    /// Clusters that run at once: a block fills a multiprocessor.
    pub(super) fn resident(&self, gpu: &Gpu) -> usize {
        (gpu.multiprocessors as usize / self.cluster).max(1)
    }

    pub(super) fn estimate_us(&self, m: usize, n: usize, k_blocks: usize, gpu: &Gpu) -> f64 {
        let (rows, columns) = self.tiles(m, n);
        let rounds = (rows * columns).div_ceil(self.resident(gpu));
        let tile = k_blocks as f64 * self.block_us + self.end_us;
        self.launch_us + rounds as f64 * tile
    }

    /// The fastest of some shapes; a slim one only where those may be. All give the same bits.
    pub(super) fn fastest(
        of: &[Shape],
        slim: bool,
        (m, n, k_blocks): (usize, usize, usize),
        gpu: &Gpu,
    ) -> Shape {
        let estimate = |shape: &&Shape| shape.estimate_us(m, n, k_blocks, gpu);
        let may = |shape: &&Shape| !shape.slim || slim && n.is_multiple_of(shape.columns);
        let fastest = of.iter().filter(may);
        let fastest = fastest.min_by(|a, b| estimate(a).total_cmp(&estimate(b)));
        fastest.copied().unwrap_or(SMALL)
    }

    /// A launch of `kernel` in tiles of this shape over `[m, n]`.
    pub(super) fn launch<A: Arguments>(
        &self,
        module: &'static str,
        kernel: String,
        counter: String,
        (m, n): (usize, usize),
        gpu: &Gpu,
        arguments: A,
    ) -> Launch {
        let (rows, columns) = self.tiles(m, n);
        let clusters = if self.slim { usize::MAX } else { self.resident(gpu) };
        let blocks = (rows * columns).min(clusters) * self.cluster;
        let grid = [blocks as u32, 1, 1];
        let block = [self.threads(), 1, 1];
        Launch::new(module, kernel, counter, grid, block, arguments)
            .shared(self.shared_bytes())
            .clusters(self.cluster as u32)
            .programmatic()
    }
}
