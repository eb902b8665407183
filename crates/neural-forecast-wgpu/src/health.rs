//! What went wrong on a device: errors of single calls, and the loss of the device.
//!
//! Nothing that wgpu reports panics: errors are caught by scopes around the calls that can fail,
//! what slips past a scope is kept by the handler, and a lost device stays lost.

use std::sync::{Mutex, OnceLock, PoisonError};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// The state of one device, shared with wgpu's callbacks.
#[derive(Debug, Default)]
pub(crate) struct Health {
    lost: OnceLock<String>,
    uncaptured: Mutex<Option<String>>,
}

impl Health {
    /// Keeps the reason of the loss; the first one counts.
    pub(crate) fn lose(&self, reason: String) {
        // The first loss is the cause of whatever follows.
        let _ = self.lost.set(reason);
    }

    /// Keeps an error that no scope caught; the first one counts.
    pub(crate) fn record(&self, error: &wgpu::Error) {
        let mut kept = self.uncaptured.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert_with(|| error.to_string());
    }

    /// An error if the device is lost.
    pub(crate) fn check_lost(&self) -> Result<(), DeviceError> {
        match self.lost.get() {
            Some(reason) => Err(DeviceError::new(DeviceErrorKind::Lost, reason.clone())),
            None => Ok(()),
        }
    }

    /// An error if the device is lost, or if an error was kept, which is then forgotten.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        self.check_lost()?;
        let kept = self.uncaptured.lock().unwrap_or_else(PoisonError::into_inner).take();
        match kept {
            Some(message) => Err(DeviceError::new(DeviceErrorKind::Execution, message)),
            None => Ok(()),
        }
    }
}

/// Makes calls with their errors caught. `what` names the thing for the message, `kind` is what an
/// error is that is neither memory nor a lost device.
pub(crate) fn checked<T>(
    device: &wgpu::Device,
    health: &Health,
    (kind, what): (DeviceErrorKind, &str),
    calls: impl FnOnce() -> T,
) -> Result<T, DeviceError> {
    health.check_lost()?;
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let value = calls();
    // Natively these are ready at once.
    let caught = [validation.pop(), internal.pop(), memory.pop()].map(pollster::block_on);
    health.check_lost()?;
    match caught.into_iter().flatten().next() {
        None => Ok(value),
        Some(wgpu::Error::OutOfMemory { .. }) => {
            let message = format!("{what}: the device gave no memory");
            Err(DeviceError::new(DeviceErrorKind::OutOfMemory, message))
        }
        Some(error) => Err(DeviceError::new(kind, format!("{what}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_loss_stays() {
        let health = Health::default();
        assert!(health.check().is_ok());
        health.lose("pulled out".into());
        health.lose("later".into());
        let error = health.check().expect_err("it is lost");
        assert_eq!(error.kind(), DeviceErrorKind::Lost);
        assert!(error.to_string().contains("pulled out"), "{error}");
    }
}
