//! Forecasts with pauses around the time that kernels linger: what the tests of kernels of whole
//! forecasts share. No test of its own.

use std::time::{Duration, Instant};

use neural_forecast_cuda::CudaDevice;
use neural_forecast_runtime::device::{Data, Device, Program, Run};

/// Windows that a comparison takes at random.
const WINDOWS: usize = 16;

pub(crate) fn forecast(program: &mut dyn Program, x: &[f32]) -> Vec<f32> {
    let rows = program.info().request.bucket.batch;
    let mut y = vec![f32::NAN; program.info().output_elements[0].0];
    program.write(0, Data::F32(x));
    program.submit(&Run { rows, slots: &[], cancel: None }).expect("submitted");
    program.wait().expect("the run succeeds");
    program.read(0, &mut y).expect("read");
    y
}

/// How often kernels whose names begin so were launched, and how often they served without.
pub(crate) fn served(device: &CudaDevice, kernels: &str) -> (u64, u64) {
    let counts = device.kernel_counts();
    let these = counts.iter().filter(|count| count.kernel.starts_with(kernels));
    these.fold((0, 0), |(launches, lingering), count| {
        (launches + count.launches, lingering + count.lingering)
    })
}

/// Forecasts of a program whose kernel lingers so many microseconds on `lingering`, and of one
/// whose kernel does not, with pauses around that time: the same bits, each served once. How many
/// were launched, and how many served without.
pub(crate) fn with_pauses(
    name: &str,
    plain: &mut dyn Program,
    kept: &mut dyn Program,
    (lingering, linger_us, kernels): (&CudaDevice, u32, &str),
    forecasts: usize,
) -> (u64, u64) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let each = plain.info().input_elements[0].0;
    let unit = |bits: u64| (bits >> 40) as f32 / (1 << 23) as f32 - 1.0;
    let windows: Vec<Vec<f32>> =
        (0..WINDOWS).map(|_| (0..each).map(|_| unit(random())).collect()).collect();
    let expected: Vec<Vec<f32>> = windows.iter().map(|x| forecast(plain, x)).collect();
    let before = served(lingering, kernels);
    let linger_ns = 1000 * u64::from(linger_us);
    for i in 0..forecasts {
        // None, or up to twice the time that it lingers; those near it most often.
        let pause = Duration::from_nanos(match random() % 4 {
            0 => 0,
            1 => random() % (2 * linger_ns + 1),
            _ => linger_ns + random() % 9000 - 4000,
        });
        let begun = Instant::now();
        while begun.elapsed() < pause {
            std::hint::spin_loop();
        }
        let window = (random() % WINDOWS as u64) as usize;
        let found = forecast(kept, &windows[window]);
        let same = found.iter().zip(&expected[window]).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{name}: forecast {i}: {found:?}, not {:?}", expected[window]);
    }
    let after = served(lingering, kernels);
    let (launches, without) = (after.0 - before.0, after.1 - before.1);
    println!("{name}: {launches} launches, {without} without");
    assert_eq!(launches + without, forecasts as u64, "each is one or the other");
    assert!(launches > 0, "{name}: pauses are longer than it lingers");
    (launches, without)
}
