//! Recurrences that no workgroup holds: a dispatch for each step, compared with the reference.

mod cases;

use neural_forecast_runtime::device::{Device, LoadOptions};
use neural_forecast_runtime::testing::{conform, device_or_skip};
use neural_forecast_wgpu::{WgpuDevice, WgpuOptions};

#[test]
fn wide_recurrences_are_a_dispatch_a_step() {
    let opened = WgpuDevice::open(0, WgpuOptions::default());
    let Some(device) = device_or_skip("wgpu", opened) else { return };
    for case in cases::wide() {
        let ran = conform(&device, &case, &LoadOptions::default());
        assert_eq!(ran, Ok(true), "{}", case.name);
    }
    let counts = device.kernel_counts();
    let launches = |name: &str| counts.iter().find(|c| c.kernel == name).map(|c| c.launches);
    // Of the throughput and of the latency class.
    for kernel in ["rnn_step-wgsl-f32", "rnn_row_step-wgsl-f32"] {
        assert!(launches(kernel).is_some_and(|n| n > 0), "{counts:?}");
    }
    assert_eq!(launches("rnn_stack-wgsl-f32"), None, "{counts:?}");
}
