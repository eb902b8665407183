//! What happens to a plan before a device compiles it: steps that nobody needs go, ops that the
//! device has no kernel for are lowered, the rest is fused.
//!
//! Shared by all devices, so that they differ in kernels alone.

use crate::device::LoadOptions;
use crate::error::PlanError;
use crate::fuse::{FuseOptions, FusionReport, fuse_with};
use crate::lower::{has_epilogue, is_stack, lower};
use crate::ops::Op;
use crate::plan::Plan;

/// The plan as a device should compile it. `supports` says which ops the device has a kernel for;
/// `options.lower` lowers stacks even so, and without `options.fuse` products lose the epilogues
/// that the model gave them, so that every op is a step of its own.
///
/// Ops that are neither supported nor lowerable are still in the result; the caller refuses them.
///
/// # Errors
/// As [`lower`].
pub fn prepare(
    plan: &Plan,
    options: &LoadOptions,
    supports: &dyn Fn(&Op) -> bool,
) -> Result<(Plan, FusionReport), PlanError> {
    let wanted = |op: &Op| {
        let plain = match op {
            Op::Linear(linear) => options.fuse || !has_epilogue(linear),
            _ => true,
        };
        plain && !(options.lower && is_stack(op)) && supports(op)
    };
    let mut needed = plan.clone();
    for entry in &mut needed.entries {
        *entry = entry.without_unused_steps();
    }
    let lowered = lower(&needed.without_unused_weights(), &wanted)?;
    if !options.fuse {
        return Ok((lowered, FusionReport::default()));
    }
    let (fused, report) = fuse_with(&lowered, FuseOptions::default());
    // A product may have been given an epilogue that this device has no kernel for.
    if fused.entries.iter().flat_map(|entry| &entry.steps).all(|step| wanted(&step.op)) {
        return Ok((fused, report));
    }
    Ok((lower(&fused, &wanted)?, report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cases;

    fn steps(plan: &Plan) -> Vec<&Op> {
        plan.entries.iter().flat_map(|entry| &entry.steps).map(|step| &step.op).collect()
    }

    #[test]
    fn options_decide_what_is_lowered_and_fused() {
        for case in cases() {
            let prepared = |fuse, lower| {
                let options = LoadOptions { fuse, lower, ..LoadOptions::default() };
                prepare(&case.plan, &options, &|_| true).expect("every case prepares").0
            };
            let kept = prepared(true, false);
            let stacks = |plan: &Plan| steps(plan).iter().filter(|op| is_stack(op)).count();
            assert_eq!(stacks(&kept), stacks(&case.plan), "{}", case.name);
            if !case.plan.entries[0].uses_states() {
                assert_eq!(stacks(&prepared(true, true)), 0, "{}", case.name);
            }
            let bare = prepared(false, true);
            let plain = |op: &&Op| matches!(op, Op::Linear(linear) if has_epilogue(linear));
            assert_eq!(steps(&bare).into_iter().filter(plain).count(), 0, "{}", case.name);
        }
    }

    #[test]
    fn steps_that_nobody_needs_go_with_their_weights() {
        use crate::ops::{Linear, Normalize, Scaler};
        use crate::plan::{Bucket, DType, Dim, StateKind};
        use crate::testing::CaseBuilder;
        let mut c = CaseBuilder::new("unused", Bucket { batch: 1, length: 1 }).stateful();
        let x = c.input(&[Dim::BATCH, 2.into(), 3.into()]);
        let unread = c.input_of(&[Dim::BATCH], DType::F32, &mut |_| 0.0);
        let (first, second) = (c.weight(&[3, 3]), c.weight(&[4, 3]));
        let kept = c.step(Linear::new(x, first));
        c.step(Linear::new(kept, second));
        let running = Some(c.state(StateKind::ScalerStatistics, &[3, 3]));
        c.steps(Normalize { running, ..Normalize::window(x, None, Scaler::standard(0.0)) });
        let plan = c.finish(&[kept]).plan;
        let (prepared, _) = prepare(&plan, &LoadOptions::default(), &|_| true).expect("it fits");
        let names: Vec<&str> = steps(&prepared).iter().map(|op| op.name()).collect();
        assert_eq!(names, ["linear", "normalize"], "what writes a state stays");
        assert_eq!(prepared.weights.len(), 1);
        let inputs = |plan: &Plan| plan.entries[0].inputs.len();
        assert_eq!(inputs(&prepared), inputs(&plan), "the contract with the caller stays");
        assert_eq!(unread.index(), 1);
    }

    #[test]
    fn a_device_without_gates_gets_none() {
        let supports = |op: &Op| match op {
            Op::Linear(linear) => linear.gate.is_none(),
            Op::EncoderStack(_) | Op::DecoderStack(_) => false,
            _ => true,
        };
        let options = LoadOptions::default();
        for case in cases() {
            let (plan, _) = prepare(&case.plan, &options, &supports).expect("it prepares");
            assert!(steps(&plan).into_iter().all(supports), "{}", case.name);
        }
    }
}
