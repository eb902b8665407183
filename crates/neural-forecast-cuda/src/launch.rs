//! One kernel launch, complete: everything about it is fixed when a program is compiled.
//!
//! Does not launch; `driver` does, and `program` decides when.

/// A struct that a kernel takes as its only parameter, by value.
///
/// # Safety
/// The type is `#[repr(C)]`, has no padding bytes, and has the layout of the kernel's parameter
/// struct (same fields, same order, same widths; addresses are `u64`).
pub(crate) unsafe trait Arguments: Copy + 'static {}

/// 64 bytes where the driver wants them: a parameter struct may begin with tensor maps.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A kernel with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Stem of the `.cu` file that holds the kernel.
    pub(crate) module: &'static str,
    /// Name of the `extern "C"` function.
    pub(crate) function: String,
    /// Name in the counters: `{op}-{tier}-{dtype}`.
    pub(crate) counter: String,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: [u32; 3],
    /// Blocks of a cluster along x; 1 without clusters.
    pub(crate) cluster: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub(crate) shared_bytes: u32,
    /// Whether blocks wait for one another across the grid, so that all must be resident at once.
    pub(crate) cooperative: bool,
    /// Whether the kernel begins with `wait_for_earlier` (`ptx/dependent.cuh`), so that it may be
    /// started before the one ahead of it has ended.
    pub(crate) programmatic: bool,
    /// Whether the kernel may stay on the device when its run is done (`ptx/linger.cuh`).
    pub(crate) lingers: bool,
    /// The parameter struct's bytes, and zeros up to the next line.
    arguments: Vec<Line>,
    argument_bytes: usize,
}

impl Line {
    fn of(bytes: &[u8]) -> Line {
        let mut line = Line([0; 64]);
        line.0[..bytes.len()].copy_from_slice(bytes);
        line
    }
}

impl Launch {
    /// A launch of `function` of `ptx/{module}.cu`, without clusters or dynamic shared memory.
    pub(crate) fn new<A: Arguments>(
        module: &'static str,
        function: impl Into<String>,
        counter: impl Into<String>,
        grid: [u32; 3],
        block: [u32; 3],
        arguments: A,
    ) -> Launch {
        // SAFETY: `Arguments` promises a plain struct without padding, so every byte of it is
        // initialised; the slice does not outlive `arguments`.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const arguments).cast::<u8>(), size_of::<A>())
        };
        Launch {
            module,
            function: function.into(),
            counter: counter.into(),
            grid,
            block,
            cluster: 1,
            shared_bytes: 0,
            cooperative: false,
            programmatic: false,
            lingers: false,
            arguments: bytes.chunks(64).map(Line::of).collect(),
            argument_bytes: bytes.len(),
        }
    }

    /// With dynamic shared memory.
    pub(crate) fn shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// In clusters of so many blocks along x; the grid's x must be a multiple.
    pub(crate) fn clusters(mut self, blocks: u32) -> Self {
        self.cluster = blocks;
        self
    }

    /// With blocks that wait for one another.
    pub(crate) fn cooperative(mut self) -> Self {
        self.cooperative = true;
        self
    }

    /// To be started before the launch ahead of it has ended: the kernel begins with
    /// `wait_for_earlier` of `ptx/dependent.cuh`. Where the GPU or the driver cannot, as usual.
    pub(crate) fn programmatic(mut self) -> Self {
        self.programmatic = true;
        self
    }

    /// Staying on the device for a while when its run is done.
    pub(crate) fn lingers(mut self) -> Self {
        self.lingers = true;
        self
    }

    /// The parameter struct's bytes, from an address that is a multiple of 64.
    pub(crate) fn arguments(&self) -> &[u8] {
        // SAFETY: lines are 64 initialised bytes each, one after another, and `new` has made as
        // many as these bytes fill.
        unsafe { std::slice::from_raw_parts(self.arguments.as_ptr().cast(), self.argument_bytes) }
    }
}
