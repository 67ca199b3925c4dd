//! The `contrail` binary: arguments in, exit code out. Everything else is the library's.

use std::process::ExitCode;

fn main() -> ExitCode {
    contrail::cli::main()
}
