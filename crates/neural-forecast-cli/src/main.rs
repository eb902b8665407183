//! The binary `neural-forecast`: hands over to the library, where everything is testable.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    neural_forecast_cli::main()
}
