//! Buffers on cache-line boundaries, and pointers that the workers of a team share.
//!
//! Not an allocator: everything is allocated when weights are packed or a program is compiled.

/// Bytes from which a buffer asks for huge pages: one of them on x86-64. Weights this large are
/// streamed through every step, and with pages of 4 KiB each page is a translation and a gap for
/// the prefetchers; 16 MB a layer and step went from 57.5 to 53.3 ms in 400 of them (Zen 4,
/// 2026-11-21).
const HUGE_FROM: usize = 2 << 20;
/// What all page sizes below a huge page divide.
const PAGE: usize = 64 << 10;

/// Asks the system to back whole pages inside of `bytes` bytes at `start` by huge ones. A wish:
/// nothing is different where it is refused, so nobody is told.
fn ask_for_huge_pages(start: *const u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        let first = start.addr().next_multiple_of(PAGE) - start.addr();
        let whole = bytes.saturating_sub(first) / PAGE * PAGE;
        // SAFETY: whole pages inside of an allocation; the advice changes nothing that they hold.
        unsafe {
            libc::madvise(start.add(first).cast_mut().cast(), whole, libc::MADV_HUGEPAGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// One cache line of floats.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Zero-initialised floats that start on a cache line.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let n = len.div_ceil(16);
        let mut lines: Vec<Line> = Vec::with_capacity(n);
        if n * size_of::<Line>() >= HUGE_FROM {
            // Before the first write, which is what gives the pages.
            ask_for_huge_pages(lines.as_ptr().cast(), n * size_of::<Line>());
        }
        lines.resize(n, Line([0.0; 16]));
        Buffer { lines, len }
    }

    /// Number of floats.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First float.
    pub fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    /// First float, writable.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }

    /// All floats.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` initialised floats.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    /// All floats, writable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: `lines` holds at least `len` initialised floats, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }

    /// All words, writable: the same memory seen as integers.
    pub fn as_mut_words(&mut self) -> &mut [u32] {
        // SAFETY: as `as_mut_slice`; every bit pattern is a valid `u32` and a valid `f32`.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len) }
    }
}

/// A pointer to floats that several workers write, each its own part.
#[derive(Clone, Copy, Debug)]
pub struct Shared(pub *mut f32);

// SAFETY: it is only a number; every dereference is an unsafe block that argues for itself.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer. A method, so that a closure captures the whole.
    pub fn get(&self) -> *mut f32 {
        self.0
    }
}

/// Asks for the cache lines of `n` floats, all at once: for what another core has just written, and
/// a product would otherwise fetch line by line.
#[inline(always)]
pub fn prefetch(at: *const f32, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in (0..n).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(i).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, n);
}

/// Where the rows of a matrix lie: row `r` starts `(r / inner) · outer_stride + (r % inner) ·
/// inner_stride` floats after the first. Lets a product read and write a range of time steps of
/// `[B, T, D]` without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMap {
    /// Rows before the outer stride applies.
    pub inner: usize,
    /// Floats between the starts of neighbouring inner rows.
    pub inner_stride: usize,
    /// Floats between the starts of groups of `inner` rows.
    pub outer_stride: usize,
}

impl RowMap {
    /// Rows `stride` floats apart.
    pub const fn dense(stride: usize) -> Self {
        RowMap { inner: usize::MAX, inner_stride: stride, outer_stride: 0 }
    }

    /// `steps` rows of each of several sequences: rows `stride` apart, sequences `sequence` apart.
    pub const fn sequences(steps: usize, stride: usize, sequence: usize) -> Self {
        RowMap { inner: steps, inner_stride: stride, outer_stride: sequence }
    }

    /// Offset of row `r` in floats.
    #[inline(always)]
    pub fn offset(self, r: usize) -> usize {
        if r < self.inner {
            return r * self.inner_stride;
        }
        (r / self.inner) * self.outer_stride + (r % self.inner) * self.inner_stride
    }
}

/// How the numbers of a value are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    /// `f32`
    #[default]
    Floats,
    /// bf16, one after another: half the memory, for values that only products read which round
    /// them anyway.
    Halves,
}

impl Numbers {
    /// Number `i` of a value that starts at `first`. What it points to is a float or a bf16.
    ///
    /// # Safety
    /// The value has that number.
    #[inline(always)]
    pub unsafe fn at(self, first: *const f32, i: usize) -> *const f32 {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Numbers::Floats => first.add(i),
                Numbers::Halves => first.cast::<u16>().add(i).cast(),
            }
        }
    }
}

/// One `T` a worker, handed out by index.
#[derive(Debug)]
pub struct PerWorker<T>(Vec<std::cell::UnsafeCell<T>>);

// SAFETY: workers take different elements (the contract of `get`).
unsafe impl<T: Send> Sync for PerWorker<T> {}

impl<T> PerWorker<T> {
    /// One for each of `workers`.
    pub fn new(workers: usize, mut make: impl FnMut() -> T) -> Self {
        PerWorker((0..workers).map(|_| make().into()).collect())
    }

    /// The worker's own.
    ///
    /// # Safety
    /// No two borrows of one index live at the same time.
    #[allow(clippy::mut_from_ref)] // the point of the type; see the contract
    pub unsafe fn get(&self, worker: usize) -> &mut T {
        // SAFETY: the caller's.
        unsafe { &mut *self.0[worker].get() }
    }

    /// One of them, shared.
    ///
    /// # Safety
    /// Nobody has borrowed it by [`PerWorker::get`].
    pub unsafe fn peek(&self, worker: usize) -> &T {
        // SAFETY: the caller's.
        unsafe { &*self.0[worker].get() }
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|cell| cell.get_mut())
    }
}
