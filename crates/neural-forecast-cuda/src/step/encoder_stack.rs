//! `encoder_stack` as a chain of few kernels: a norm, one product for queries, keys and values,
//! attention, a product with the residual; a norm, two products.
//!
//! The residual stream is f32; between the products of a sublayer values are in the format that
//! products read. Stacks with cross or group attention, residual scores, bias matrices or group
//! norms are lowered instead ([`takes`]). Norms in `ptx/encoder.cu`.

use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::ops::{
    Activation, AttentionBias, AttentionLayer, FeedForward, Keep, NormKind, NormPlacement,
    NormWeights, Stack, SublayerKind,
};
use neural_forecast_runtime::plan::ValueId;
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use super::attention::{Call, Flash, FlashCall, ListOf, Lists, Scores, View};
use super::encoder_norm::{LoadedNorm, NO_NORM, Rows, launch_norm};
use super::encoder_small::{self, EncoderSmall};
use super::gemm::{
    Element, GatePart, Gemm, Matrix, Product, Weights, pack_biases, pack_gated, pack_weights,
    product_element,
};
use super::gemm_hopper::{self, row_stride};
use super::gemm_normed::{Described, Normed, describe, launch_stream};
use super::{Build, Loaded, Packer};

pub(super) const COUNTER: &str = "encoder_stack";

/// Most positions of a series that are few.
const FEW: usize = 16;

/// Whether the stack is run here; others are lowered.
pub(crate) fn takes(op: &Stack) -> bool {
    let norm = |norm: &NormWeights| !matches!(norm.kind, NormKind::Group(_));
    let sublayers = op.layers.iter().flatten().all(|sublayer| {
        let norms = match &sublayer.norm {
            NormPlacement::None => true,
            NormPlacement::Pre(only) | NormPlacement::Post(only) => norm(only),
            NormPlacement::Sandwich { before, after } => norm(before) && norm(after),
        };
        norms
            && match &sublayer.kind {
                SublayerKind::SelfAttention(a) => !matches!(a.bias, Some(AttentionBias::Weight(_))),
                SublayerKind::FeedForward(_) => true,
                _ => false,
            }
    });
    sublayers && !op.residual_scores && op.final_norm.as_ref().is_none_or(norm)
}

#[derive(Clone, Copy, Debug)]
enum Placement {
    None,
    Pre(LoadedNorm),
    Post(LoadedNorm),
    Sandwich(LoadedNorm, LoadedNorm),
}

#[derive(Debug)]
struct LoadedSelfAttention {
    /// Queries, keys, values under one another.
    qkv: Weights,
    qkv_bias: u64,
    /// The same for the stream as it is, where the norm ahead is made up for.
    normed: Option<Normed>,
    output: Weights,
    output_bias: u64,
    heads: usize,
    head: usize,
    /// The plain case.
    flash: Option<Flash>,
    scores: Scores,
}

#[derive(Debug)]
struct LoadedFeedForward {
    up: Weights,
    up_bias: u64,
    /// As for attention.
    normed: Option<Normed>,
    ff: usize,
    activation: Activation,
    gate: Option<GatePart>,
    down: Weights,
    down_bias: u64,
}

#[derive(Debug)]
enum Kind {
    Attention(LoadedSelfAttention),
    FeedForward(LoadedFeedForward),
}

#[derive(Debug)]
struct LoadedSublayer {
    kind: Kind,
    placement: Placement,
}

impl LoadedSublayer {
    /// The first product, where it can make up for the norm ahead.
    fn normed(&self) -> Option<&Normed> {
        match &self.kind {
            Kind::Attention(a) => a.normed.as_ref(),
            Kind::FeedForward(f) => f.normed.as_ref(),
        }
    }
}

/// The op with its weights on the device.
#[derive(Debug)]
pub(crate) struct LoadedEncoderStack {
    x: ValueId,
    y: ValueId,
    mask: Option<ValueId>,
    /// What products read.
    element: Element,
    sublayers: Vec<LoadedSublayer>,
    final_norm: Option<LoadedNorm>,
    keep: Option<usize>,
    /// The sublayer from which on only the positions that are kept are computed.
    narrow_from: usize,
    /// All of it in one launch, where it is small.
    small: Option<EncoderSmall>,
}

pub(super) fn refuse(what: String) -> DeviceError {
    DeviceError::new(
        DeviceErrorKind::Unsupported,
        format!("encoder_stack has no kernel for {what}"),
    )
}

impl LoadedSelfAttention {
    fn load(
        a: &AttentionLayer,
        norm: Option<&NormWeights>,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let parts = [a.query, a.key, a.value];
        let width = a.heads * a.head;
        let element = product_element(packer.precision());
        let flash = Flash::takes(a, element, packer.gpu()).then_some(Flash {
            heads: a.heads,
            head: a.head,
            scale: a.scale,
            causal: a.causal,
            element,
            exact: packer.precision() == Precision::F32,
        });
        let same = parts.map(|part| (part.weight, part.bias));
        let normed = match norm.filter(|_| flash.is_some()) {
            Some(norm) => Normed::load(packer, &same, Activation::Identity, norm)?,
            None => None,
        };
        Ok(LoadedSelfAttention {
            normed,
            qkv: pack_weights(packer, &parts.map(|part| Some(part.weight)))?,
            qkv_bias: pack_biases(packer, &parts.map(|part| part.bias), &[width; 3])?,
            output: pack_weights(packer, &[Some(a.output.weight)])?,
            output_bias: packer.optional(a.output.bias)?,
            heads: a.heads,
            head: a.head,
            flash,
            scores: Scores::of_layer(a, packer)?,
        })
    }

    fn width(&self) -> usize {
        self.heads * self.head
    }

    /// Rows `first .. first + n` of the packed weights, and their biases.
    fn part(&self, first: usize, n: usize) -> (Weights, u64) {
        let bias = match self.qkv_bias {
            0 => 0,
            address => address + (first * size_of::<f32>()) as u64,
        };
        (self.qkv.rows(first, n), bias)
    }
}

impl LoadedFeedForward {
    fn load(
        f: &FeedForward,
        norm: Option<&NormWeights>,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let ff = packer.shape(f.up.weight)[0];
        let up = match &f.gate {
            Some(gate) => pack_gated(packer, f.up.weight, gate.weight)?,
            None => pack_weights(packer, &[Some(f.up.weight)])?,
        };
        // With a gate the activation is the gate's.
        let (activation, gate) = match &f.gate {
            Some(gate) => {
                let bias = packer.optional(gate.bias)?;
                (Activation::Identity, Some(GatePart { bias, activation: f.activation }))
            }
            None => (f.activation, None),
        };
        let normed = match norm.filter(|_| gate.is_none()) {
            Some(norm) => Normed::load(packer, &[(f.up.weight, f.up.bias)], activation, norm)?,
            None => None,
        };
        Ok(LoadedFeedForward {
            normed,
            up,
            up_bias: packer.optional(f.up.bias)?,
            ff,
            activation,
            gate,
            down: pack_weights(packer, &[Some(f.down.weight)])?,
            down_bias: packer.optional(f.down.bias)?,
        })
    }
}

impl LoadedEncoderStack {
    pub(crate) fn load(
        op: &Stack,
        y: ValueId,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let mut sublayers = Vec::new();
        for sublayer in op.layers.iter().flatten() {
            let ahead = match &sublayer.norm {
                NormPlacement::Pre(norm) => Some(norm),
                _ => None,
            };
            let kind = match &sublayer.kind {
                SublayerKind::SelfAttention(a) => {
                    Kind::Attention(LoadedSelfAttention::load(a, ahead, packer)?)
                }
                SublayerKind::FeedForward(f) => {
                    Kind::FeedForward(LoadedFeedForward::load(f, ahead, packer)?)
                }
                other => return Err(refuse(format!("{other:?}"))),
            };
            let mut norm = |norm: &NormWeights| LoadedNorm::load(norm, packer);
            let placement = match &sublayer.norm {
                NormPlacement::None => Placement::None,
                NormPlacement::Pre(before) => Placement::Pre(norm(before)?),
                NormPlacement::Post(after) => Placement::Post(norm(after)?),
                NormPlacement::Sandwich { before, after } => {
                    Placement::Sandwich(norm(before)?, norm(after)?)
                }
            };
            sublayers.push(LoadedSublayer { kind, placement });
        }
        let attention = |sublayer: &LoadedSublayer| matches!(sublayer.kind, Kind::Attention(_));
        let narrow_from = sublayers.iter().rposition(attention).unwrap_or(0);
        let final_norm = op.final_norm.as_ref();
        Ok(LoadedEncoderStack {
            x: op.x,
            y,
            mask: op.mask,
            element: product_element(packer.precision()),
            final_norm: final_norm.map(|norm| LoadedNorm::load(norm, packer)).transpose()?,
            keep: match op.keep {
                Keep::All => None,
                Keep::Last(n) => Some(n),
            },
            narrow_from,
            sublayers,
            small: encoder_small::load(op, packer)?,
        })
    }
}

/// Places in the step's scratch.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Residual stream of all positions, and of those that are kept: f32.
    stream: u64,
    kept_stream: u64,
    /// Input of products, in their format.
    h: u64,
    h_stride: usize,
    /// Queries, keys and values, or the inside of a feed-forward.
    inner: u64,
    /// Queries of the positions that are kept.
    queries: u64,
    /// What describes the stream to products that make up for norms.
    statistics: u64,
    /// Result of attention.
    attended: u64,
    /// What a sandwich normalises before it is added.
    between: u64,
}

/// What a sublayer computes, but for norms and the residual.
#[derive(Clone, Copy)]
struct Function<'a> {
    kind: &'a Kind,
    /// The first product, where it makes up for the norm ahead, and what it reads.
    normed: Option<(&'a Normed, Described)>,
    /// Of the first product.
    input: Matrix,
    /// As many positions are left.
    narrow: Option<usize>,
}

/// The walk along the sublayers.
struct Walk<'a, 'b> {
    stack: &'a LoadedEncoderStack,
    build: &'a mut Build<'b>,
    width: usize,
    room: Room,
    /// The residual stream.
    x: Rows,
    /// Whether `room.h` holds the stream in the products' format.
    converted: bool,
    /// The stream as products that make up for norms read it, if something has described it.
    described: Option<Described>,
    /// Whether the next sublayer's product is one of those.
    to_describe: bool,
    lists: Vec<(ListOf, Lists)>,
}

impl Loaded for LoadedEncoderStack {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let shape = build.shape(self.x);
        let (batch, time, width) = (shape[0], shape[1], shape[2]);
        let kept = self.keep.filter(|&n| n < time);
        if batch * kept.unwrap_or(time) == 0 {
            return Ok(());
        }
        if let Some(small) = &self.small
            && small.build(self.y, build)?
        {
            return Ok(());
        }
        let room = self.room(build, batch, time, kept.unwrap_or(time), width);
        let x = Rows::dense(build.value(self.x), batch, time, width);
        let y = build.value(self.y);
        let mut walk = Walk::new(self, build, width, room, x);
        walk.make_lists(kept)?;
        for (i, sublayer) in self.sublayers.iter().enumerate() {
            let last = i + 1 == self.sublayers.len() && self.final_norm.is_none();
            let narrow = kept.filter(|_| i == self.narrow_from);
            let next = self.sublayers.get(i + 1).filter(|_| narrow.is_none());
            walk.to_describe = next.is_some_and(|next| walk.normed(next).is_some());
            let mark = walk.build.scratch_mark();
            walk.sublayer(sublayer, narrow, last.then_some(y))?;
            walk.build.scratch_release(mark);
        }
        if self.sublayers.is_empty() || self.final_norm.is_some() {
            let rows = kept.map_or(walk.x, |n| walk.x.last(n));
            let norm = self.final_norm.unwrap_or(NO_NORM);
            walk.norm(&norm, rows, None, Some(y), None)?;
        }
        Ok(())
    }
}

impl LoadedEncoderStack {
    /// Scratch, as large as the largest sublayer needs.
    fn room(
        &self,
        build: &mut Build<'_>,
        batch: usize,
        time: usize,
        kept: usize,
        width: usize,
    ) -> Room {
        let bytes = element_bytes(self.element);
        let all = batch * time;
        let h_stride = padded(width, self.element);
        let (mut inner, mut attended, mut queries) = (0, 0, 0);
        for sublayer in &self.sublayers {
            match &sublayer.kind {
                Kind::Attention(a) => {
                    // Generic attention reads and writes f32.
                    let bytes = if a.flash.is_some() { bytes } else { 4 };
                    let element = a.flash.map_or(Element::F32, |flash| flash.element);
                    inner = inner.max(padded(3 * a.width(), element) * bytes);
                    attended = attended.max(padded(a.width(), element) * bytes);
                    queries = queries.max(padded(a.width(), element) * bytes);
                }
                Kind::FeedForward(f) => inner = inner.max(padded(f.ff, self.element) * bytes),
            }
        }
        let normed = |s: &LoadedSublayer| s.normed().is_some();
        let statistics = match build.class() {
            KernelClass::Latency if self.sublayers.iter().any(normed) => Described::row_bytes(),
            _ => 0,
        };
        let sandwich = |s: &LoadedSublayer| matches!(s.placement, Placement::Sandwich(..));
        let between = if self.sublayers.iter().any(sandwich) { 4 * width } else { 0 };
        Room {
            stream: build.scratch(all * width * 4),
            kept_stream: build.scratch(batch * kept * width * 4),
            h: build.scratch(all * h_stride * bytes),
            h_stride,
            inner: build.scratch(all * inner),
            queries: build.scratch(batch * kept * queries),
            statistics: build.scratch(all * statistics),
            attended: build.scratch(all * attended),
            between: build.scratch(all * between),
        }
    }
}

fn element_bytes(element: Element) -> usize {
    if element == Element::F32 { 4 } else { 2 }
}

/// Columns such that all rows begin at multiples of 16 bytes, of 128 where tensor copies read them.
fn padded(columns: usize, element: Element) -> usize {
    match element {
        Element::F32 => columns.next_multiple_of(4),
        Element::F16 | Element::Bf16 => row_stride(columns),
    }
}

impl<'a, 'b> Walk<'a, 'b> {
    fn new(
        stack: &'a LoadedEncoderStack,
        build: &'a mut Build<'b>,
        width: usize,
        room: Room,
        x: Rows,
    ) -> Self {
        Walk {
            stack,
            build,
            width,
            room,
            x,
            converted: false,
            described: None,
            to_describe: false,
            lists: Vec::new(),
        }
    }

    /// The first product of a sublayer over all positions, where it makes up for the norm ahead:
    /// in the latency class, whatever the batch.
    fn normed<'c>(&self, sublayer: &'c LoadedSublayer) -> Option<&'c Normed> {
        let all = self.x.each == self.build.shape(self.stack.x)[1];
        let taken = all && self.build.class() == KernelClass::Latency && self.x.matrix().is_some();
        sublayer.normed().filter(|_| taken)
    }

    /// The stream as a product that makes up for its norm reads it.
    fn described(&mut self) -> Result<Described, DeviceError> {
        if let Some(described) = self.described {
            return Ok(described);
        }
        let x = self.x.matrix().ok_or_else(|| refuse("scattered rows".to_owned()))?;
        let to = self.place_of_description()?;
        describe(self.x.count(), x, &to, self.build, COUNTER);
        Ok(to)
    }

    /// Where the stream is described.
    fn place_of_description(&self) -> Result<Described, DeviceError> {
        Described::of(self.width, self.input(), self.room.statistics)
            .ok_or_else(|| refuse(format!("a described stream of {} columns", self.width)))
    }

    /// One sublayer with its norms and residual. `narrow` in the one that goes from all positions
    /// to the last ones; `target` where the result goes, else it stays in the stream.
    fn sublayer(
        &mut self,
        sublayer: &LoadedSublayer,
        narrow: Option<usize>,
        target: Option<u64>,
    ) -> Result<(), DeviceError> {
        let queries_alone = matches!(sublayer.kind, Kind::Attention(_));
        let normed = self.normed(sublayer).filter(|_| narrow.is_none() || queries_alone);
        let normed = match normed {
            Some(normed) => Some((normed, self.described()?)),
            None => None,
        };
        self.described = None;
        let input = match sublayer.placement {
            Placement::Pre(_) if normed.is_some() => self.input(),
            Placement::Pre(norm) | Placement::Sandwich(norm, _) => self.normalised(&norm)?,
            Placement::None | Placement::Post(_) => self.plain()?,
        };
        let before = match narrow {
            Some(n) => self.kept(n)?,
            None => self.x,
        };
        let residual = before.matrix().ok_or_else(|| refuse("scattered rows".to_owned()))?;
        let stream = self.stream_of(before.each);
        let sum = target.unwrap_or(stream);
        let width = self.width;
        let rows = |address| Rows::dense(address, before.batch, before.each, width);
        let matrix = |address, width| Matrix { address, element: Element::F32, stride: width };
        let f = Function { kind: &sublayer.kind, normed, input, narrow };
        match sublayer.placement {
            Placement::Sandwich(_, after) => {
                let between = matrix(self.room.between, width);
                self.to_describe = false;
                self.function(&f, None, between)?;
                let result = rows(self.room.between);
                self.norm(&after, result, Some(before), Some(sum), None)?;
                self.converted = false;
            }
            Placement::Post(after) => {
                let y = matrix(stream, width);
                self.to_describe = false;
                self.function(&f, Some(residual), y)?;
                // The next sublayer may read the result as it is.
                let convert = target.is_none() && self.stack.element != Element::F32;
                let h = convert.then_some(self.room.h);
                self.norm(&after, rows(stream), None, Some(sum), h)?;
                self.converted = convert;
            }
            Placement::Pre(_) | Placement::None => {
                let y = matrix(sum, width);
                self.function(&f, Some(residual), y)?;
                self.converted = false;
            }
        }
        self.x = rows(sum);
        Ok(())
    }

    /// Where the stream of so many positions is kept; never where `self.x` is narrowed from.
    fn stream_of(&self, each: usize) -> u64 {
        let all = self.build.shape(self.stack.x)[1];
        if each == all { self.room.stream } else { self.room.kept_stream }
    }

    /// The last positions of the stream, equally far apart.
    fn kept(&mut self, n: usize) -> Result<Rows, DeviceError> {
        let rows = self.x.last(n);
        if rows.matrix().is_some() {
            return Ok(rows);
        }
        let to = self.room.kept_stream;
        self.norm(&NO_NORM, rows, None, Some(to), None)?;
        Ok(Rows::dense(to, rows.batch, n, self.width))
    }

    /// The stream normalised, in the products' format.
    fn normalised(&mut self, norm: &LoadedNorm) -> Result<Matrix, DeviceError> {
        self.norm(norm, self.x, None, None, Some(self.room.h))?;
        Ok(self.input())
    }

    /// The stream in the products' format.
    fn plain(&mut self) -> Result<Matrix, DeviceError> {
        if self.stack.element == Element::F32
            && let Some(x) = self.x.matrix()
        {
            return Ok(x);
        }
        if !self.converted {
            self.norm(&NO_NORM, self.x, None, None, Some(self.room.h))?;
        }
        Ok(self.input())
    }

    fn input(&self) -> Matrix {
        let Room { h, h_stride, .. } = self.room;
        Matrix { address: h, element: self.stack.element, stride: h_stride }
    }

    /// `y = residual + f(input)`.
    fn function(
        &mut self,
        f: &Function<'_>,
        residual: Option<Matrix>,
        y: Matrix,
    ) -> Result<(), DeviceError> {
        match f.kind {
            Kind::Attention(a) => self.attention(a, f, residual, y),
            Kind::FeedForward(kind) => {
                let each = f.narrow.unwrap_or(self.x.each);
                let f = Function { input: self.last_of(f.input, each)?, ..*f };
                self.feed_forward(kind, &f, self.x.batch * each, (residual, y))
            }
        }
    }

    /// The last rows of each batch row of a matrix of as many rows as the stream, equally far
    /// apart: by a stride where that is enough, else brought together in the queries' place.
    fn last_of(&mut self, all: Matrix, n: usize) -> Result<Matrix, DeviceError> {
        let each = self.x.each;
        if n == each {
            return Ok(all);
        }
        let skipped = ((each - n) * all.stride * element_bytes(all.element)) as u64;
        let address = all.address + skipped;
        match (self.x.batch, n) {
            (1, _) => Ok(Matrix { address, ..all }),
            (_, 1) => Ok(Matrix { address, stride: each * all.stride, ..all }),
            _ => self.gathered(all, n),
        }
    }

    /// Rows brought together, as words: a copy that knows no format.
    fn gathered(&mut self, all: Matrix, n: usize) -> Result<Matrix, DeviceError> {
        let words = all.stride * element_bytes(all.element) / 4;
        let (batch, each) = (self.x.batch, self.x.each);
        let to = self.build.scratch(batch * n * words * 4);
        let rows = Rows::dense(all.address, batch, each, words).last(n);
        launch_norm(self.build, &NO_NORM, rows, words, (None, Some(to)), None)?;
        Ok(Matrix { address: to, ..all })
    }

    fn attention(
        &mut self,
        a: &LoadedSelfAttention,
        f: &Function<'_>,
        residual: Option<Matrix>,
        y: Matrix,
    ) -> Result<(), DeviceError> {
        let Function { normed, input, narrow, .. } = *f;
        let (batch, time, width) = (self.x.batch, self.x.each, a.width());
        let queries = narrow.unwrap_or(time);
        let (element, bytes) = match a.flash {
            Some(flash) => (flash.element, element_bytes(flash.element)),
            None => (Element::F32, 4),
        };
        let room = self.room;
        let inner = |column: usize, columns: usize| {
            let address = room.inner + (column * bytes) as u64;
            Matrix { address, element, stride: padded(columns, element) }
        };
        // Queries of the positions that are kept: a product of their own, or (one launch less) the
        // last rows of all.
        let apart = narrow.is_some()
            && (self.build.class() == KernelClass::Throughput || a.flash.is_none());
        let m = batch * time;
        let (q, q_batch, kv) = if apart {
            let both = inner(0, 2 * width);
            self.product(m, input, a.part(width, 2 * width), None, both)?;
            let rows = self.last_of(input, queries)?;
            let q = Matrix { address: room.queries, element, stride: padded(width, element) };
            self.product(batch * queries, rows, a.part(0, width), None, q)?;
            (q, queries * q.stride, both)
        } else {
            let all = inner(0, 3 * width);
            match normed {
                Some((normed, from)) => normed.launch(m, &from, all, self.build, COUNTER)?,
                None => self.product(m, input, (a.qkv, a.qkv_bias), None, all)?,
            }
            let skipped = (time - queries) * all.stride * bytes;
            let q = Matrix { address: all.address + skipped as u64, ..all };
            let kv = Matrix { address: all.address + (width * bytes) as u64, ..all };
            (q, time * all.stride, kv)
        };
        self.attend(a, (q, q_batch), kv, queries)?;
        // The generic kernels write rows of their width.
        let stride = if a.flash.is_some() { padded(width, element) } else { width };
        let x = Matrix { address: room.attended, element, stride };
        self.sum(batch * queries, x, (a.output, a.output_bias), residual, y)
    }

    /// Attention of queries, `q_batch` elements from one batch row's to the next's, over keys with
    /// the values beside them.
    fn attend(
        &mut self,
        a: &LoadedSelfAttention,
        (q, q_batch): (Matrix, usize),
        kv: Matrix,
        queries: usize,
    ) -> Result<(), DeviceError> {
        let (batch, time, width) = (self.x.batch, self.x.each, a.width());
        let element = q.element;
        let v = kv.address + (width * element_bytes(element)) as u64;
        let attended = self.room.attended;
        let lists = self.lists(a, queries);
        match &a.flash {
            Some(flash) => {
                let call = FlashCall {
                    q: q.address,
                    k: kv.address,
                    v,
                    y: attended,
                    q_batch,
                    q_stride: q.stride,
                    kv_stride: kv.stride,
                    y_stride: padded(width, element),
                    batch,
                    queries,
                    keys: time,
                };
                flash.launch(self.build, COUNTER, &call, lists.as_ref())?;
            }
            None => {
                let view = |address, stride| View { address, stride };
                let views =
                    [view(q.address, q.stride), view(kv.address, kv.stride), view(v, kv.stride)];
                let mask = self.mask();
                let call = Call::over_time(views, batch, (queries, time), mask, attended);
                a.scores.launch(self.build, COUNTER, &call, lists.as_ref())?;
            }
        }
        Ok(())
    }

    fn mask(&self) -> u64 {
        self.stack.mask.map_or(0, |id| self.build.value(id))
    }

    /// Which keys are visible, once for all layers that see the same.
    fn make_lists(&mut self, kept: Option<usize>) -> Result<(), DeviceError> {
        if self.mask() == 0 {
            return Ok(());
        }
        for (i, sublayer) in self.stack.sublayers.iter().enumerate() {
            let Kind::Attention(a) = &sublayer.kind else { continue };
            let narrow = kept.filter(|_| i == self.stack.narrow_from);
            let of = self.list_of(a, narrow.unwrap_or(self.x.each));
            if self.lists.iter().all(|(known, _)| *known != of) {
                self.lists.push((of, Lists::launch(self.build, COUNTER, &of)?));
            }
        }
        Ok(())
    }

    fn list_of(&self, a: &LoadedSelfAttention, queries: usize) -> ListOf {
        ListOf {
            batch: self.x.batch,
            queries,
            keys: self.x.each,
            mask: self.mask(),
            causal: a.scores.causal(),
            skip_masked: a.scores.skips_masked(),
            ring: (0, 0),
        }
    }

    fn lists(&self, a: &LoadedSelfAttention, queries: usize) -> Option<Lists> {
        let of = self.list_of(a, queries);
        self.lists.iter().find(|(known, _)| *known == of).map(|(_, lists)| *lists)
    }

    fn feed_forward(
        &mut self,
        f: &LoadedFeedForward,
        of: &Function<'_>,
        m: usize,
        (residual, y): (Option<Matrix>, Matrix),
    ) -> Result<(), DeviceError> {
        let element = self.stack.element;
        let stride = padded(f.ff, element);
        let inner = Matrix { address: self.room.inner, element, stride };
        if let Some((normed, from)) = of.normed {
            normed.launch(m, &from, inner, self.build, COUNTER)?;
            return self.sum(m, inner, (f.down, f.down_bias), residual, y);
        }
        let gemm = Gemm {
            m,
            x: of.input,
            w: f.up,
            bias: f.up_bias,
            activation: f.activation,
            residual: None,
            y: inner,
        };
        let few = self.is_few(m);
        let up = Product { outputs: f.ff, gate: f.gate, few, ..Product::new(gemm) };
        up.launch(self.build, COUNTER)?;
        self.sum(m, inner, (f.down, f.down_bias), residual, y)
    }

    /// The product that a sublayer ends with, described for the next if that wants it.
    fn sum(
        &mut self,
        m: usize,
        x: Matrix,
        (w, bias): (Weights, u64),
        residual: Option<Matrix>,
        y: Matrix,
    ) -> Result<(), DeviceError> {
        let gemm = Gemm { m, x, w, bias, activation: Activation::Identity, residual, y };
        let served = gemm_hopper::serves(&gemm, self.build.gpu(), self.build.class());
        if !self.to_describe || !served {
            return self.launch(gemm);
        }
        let to = self.place_of_description()?;
        launch_stream(&gemm, &to, self.build, COUNTER)?;
        self.described = Some(to);
        Ok(())
    }

    /// Whether so many rows are a few of each series, of many: bits must not depend on the batch.
    fn is_few(&self, m: usize) -> bool {
        let (each, all) = (m / self.x.batch, self.build.shape(self.stack.x)[1]);
        each <= FEW && each < all
    }

    fn product(
        &mut self,
        m: usize,
        x: Matrix,
        (w, bias): (Weights, u64),
        residual: Option<Matrix>,
        y: Matrix,
    ) -> Result<(), DeviceError> {
        self.launch(Gemm { m, x, w, bias, activation: Activation::Identity, residual, y })
    }

    fn launch(&mut self, gemm: Gemm) -> Result<(), DeviceError> {
        let few = self.is_few(gemm.m);
        Product { few, ..Product::new(gemm) }.launch(self.build, COUNTER)
    }

    /// `y` and `h` (in the products' format) become `residual + norm(rows)`.
    fn norm(
        &mut self,
        norm: &LoadedNorm,
        rows: Rows,
        residual: Option<Rows>,
        y: Option<u64>,
        h: Option<u64>,
    ) -> Result<(), DeviceError> {
        let h = h.map(|address| Matrix { address, ..self.input() });
        launch_norm(self.build, norm, rows, self.width, (residual, y), h)
    }
}
