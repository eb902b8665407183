//! Building blocks that several families share: affine maps, norms, residual blocks and masks, by
//! the names of their weights.
//!
//! Not layers with state: each adds steps to the plan that is being built and gives their values.

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::ops::{
    Activation, Binary, BinaryKind, Concat, Expand, Linear, Norm, NormKind, NormWeights, Operand,
    Product, Reshape, Slice, Transpose, Unary, UnaryKind,
};
use neural_forecast_runtime::plan::{Dim, PlanBuilder, ValueId};

/// Most of any width, count or length that a configuration may ask for. Far above every published
/// model, and low enough that products of three of them fit into 64 bits.
pub(crate) const SIZE_MAX: usize = 1 << 20;

/// Most layers that a configuration may ask for.
pub(crate) const LAYERS_MAX: usize = 1024;

/// Checks numbers of a configuration: each must be in `1..=SIZE_MAX`.
pub(crate) fn check_sizes(place: &str, sizes: &[(&str, usize)]) -> Result<(), PlanError> {
    for &(name, size) in sizes {
        in_range(place, name, size, 1, SIZE_MAX)?;
    }
    Ok(())
}

/// Checks a number of a configuration against its range.
pub(crate) fn in_range(
    place: &str,
    name: &str,
    found: usize,
    least: usize,
    most: usize,
) -> Result<(), PlanError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(PlanError::new(place, format!("`{name}` is {found}, expected {least} to {most}")))
}

/// Checks that a width divides into heads.
pub(crate) fn check_heads(place: &str, width: usize, heads: usize) -> Result<(), PlanError> {
    if heads > 0 && width.is_multiple_of(heads) {
        return Ok(());
    }
    Err(PlanError::new(place, format!("width {width} does not divide into {heads} heads")))
}

/// Checks a list of quantile levels: some, each in (0, 1).
pub(crate) fn check_levels(place: &str, levels: &[f64]) -> Result<(), PlanError> {
    let valid = levels.iter().all(|level| *level > 0.0 && *level < 1.0);
    if valid && (1..=LAYERS_MAX).contains(&levels.len()) {
        return Ok(());
    }
    Err(PlanError::new(place, format!("`quantiles` are {levels:?}, expected levels in (0, 1)")))
}

/// The affine map `{name}.weight`, `{name}.bias`, over features.
pub(crate) fn linear(
    b: &mut PlanBuilder,
    x: ValueId,
    name: &str,
    [outputs, inputs]: [usize; 2],
    bias: bool,
) -> Linear {
    let product = product(b, name, [outputs, inputs], bias);
    Linear::new(x, product.weight).bias(product.bias)
}

/// The weights of [`linear`].
pub(crate) fn product(
    b: &mut PlanBuilder,
    name: &str,
    [outputs, inputs]: [usize; 2],
    bias: bool,
) -> Product {
    let weight = b.weight(format!("{name}.weight"), &[outputs, inputs]);
    let bias = bias.then(|| b.weight(format!("{name}.bias"), &[outputs]));
    Product { weight, bias }
}

/// Layer normalisation by `{name}.weight` and `{name}.bias`.
pub(crate) fn layer_norm(b: &mut PlanBuilder, name: &str, width: usize, eps: f32) -> NormWeights {
    NormWeights {
        kind: NormKind::Layer,
        weight: Some(b.weight(format!("{name}.weight"), &[width])),
        weight_offset: 0.0,
        bias: Some(b.weight(format!("{name}.bias"), &[width])),
        eps,
    }
}

/// RMS normalisation by the weight `name`.
pub(crate) fn rms_norm(b: &mut PlanBuilder, name: &str, width: usize, eps: f32) -> NormWeights {
    let weight = Some(b.weight(name, &[width]));
    NormWeights { kind: NormKind::Rms, weight, weight_offset: 0.0, bias: None, eps }
}

/// A norm as a step of its own.
pub(crate) fn norm(
    b: &mut PlanBuilder,
    x: ValueId,
    weights: NormWeights,
) -> Result<ValueId, PlanError> {
    let NormWeights { kind, weight, weight_offset, bias, eps } = weights;
    b.one(Norm { x, kind, weight, weight_offset, bias, eps })
}

/// Names and widths of a residual block.
#[derive(Clone, Copy)]
pub(crate) struct ResidualBlock<'a> {
    /// Prefix of its three maps.
    pub name: &'a str,
    /// Name of the first of them.
    pub hidden_layer: &'a str,
    /// Widths: inputs, hidden, outputs.
    pub widths: [usize; 3],
    /// Between the first two.
    pub activation: Activation,
    /// Whether each has a bias.
    pub bias: bool,
}

impl ResidualBlock<'_> {
    /// `output(activation(hidden(x))) + residual(x)`.
    pub(crate) fn build(&self, b: &mut PlanBuilder, x: ValueId) -> Result<ValueId, PlanError> {
        let [inputs, hidden, outputs] = self.widths;
        let name = |part: &str| format!("{}.{part}", self.name);
        let up = linear(b, x, &name(self.hidden_layer), [hidden, inputs], self.bias);
        let up = b.one(up.activation(self.activation))?;
        let skip = linear(b, x, &name("residual_layer"), [outputs, inputs], self.bias);
        let skip = b.one(skip)?;
        let down = linear(b, up, &name("output_layer"), [outputs, hidden], self.bias);
        b.one(down.residual(skip))
    }
}

/// The same elements under another shape.
pub(crate) fn reshape(
    b: &mut PlanBuilder,
    x: ValueId,
    shape: &[Dim],
) -> Result<ValueId, PlanError> {
    b.one(Reshape { x, shape: shape.to_vec() })
}

/// Permuted axes.
pub(crate) fn transpose(
    b: &mut PlanBuilder,
    x: ValueId,
    permutation: &[usize],
) -> Result<ValueId, PlanError> {
    b.one(Transpose { x, permutation: permutation.to_vec() })
}

/// Values joined along an axis.
pub(crate) fn concat(
    b: &mut PlanBuilder,
    parts: &[ValueId],
    axis: usize,
) -> Result<ValueId, PlanError> {
    b.one(Concat { parts: parts.to_vec(), axis })
}

/// A value repeated along a new axis.
pub(crate) fn expand(
    b: &mut PlanBuilder,
    x: Operand,
    axis: usize,
    count: impl Into<Dim>,
) -> Result<ValueId, PlanError> {
    b.one(Expand { x, axis, count: count.into() })
}

/// Positions `start .. start + length` of an axis.
pub(crate) fn slice(
    b: &mut PlanBuilder,
    x: ValueId,
    axis: usize,
    start: usize,
    length: usize,
) -> Result<ValueId, PlanError> {
    b.one(Slice::range(x, axis, start, length))
}

/// `factor · x + offset`.
pub(crate) fn affine(
    b: &mut PlanBuilder,
    x: ValueId,
    factor: f32,
    offset: f32,
) -> Result<ValueId, PlanError> {
    b.one(Unary { x, kind: UnaryKind::Affine { factor, offset } })
}

/// A function of each element.
pub(crate) fn unary(
    b: &mut PlanBuilder,
    x: ValueId,
    kind: UnaryKind,
) -> Result<ValueId, PlanError> {
    b.one(Unary { x, kind })
}

/// A function of two values; the second broadcasts to the first.
pub(crate) fn binary(
    b: &mut PlanBuilder,
    x: ValueId,
    kind: BinaryKind,
    y: ValueId,
) -> Result<ValueId, PlanError> {
    b.one(Binary::values(x, kind, y))
}

/// The mask of an observed window and the window without NaN: `(values, mask)`.
pub(crate) fn observed(b: &mut PlanBuilder, x: ValueId) -> Result<(ValueId, ValueId), PlanError> {
    let mask = unary(b, x, UnaryKind::Observed)?;
    Ok((unary(b, x, UnaryKind::NanToZero)?, mask))
}

/// Shift `[B, 1, C]` and scale `[B, 1, C]` of the statistics `[B, 2, C]` of a scaler.
pub(crate) fn shift_and_scale(
    b: &mut PlanBuilder,
    statistics: ValueId,
) -> Result<(ValueId, ValueId), PlanError> {
    Ok((slice(b, statistics, 1, 0, 1)?, slice(b, statistics, 1, 1, 1)?))
}
