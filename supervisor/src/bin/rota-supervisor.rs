//! The supervisor as a program of its own, for tests and for hosts that keep it apart from `rota`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rota_supervisor::main(std::env::args_os().skip(1))
}
