//! The `contrail` binary: arguments in, exit code out. Everything else is the library's.

use std::process::ExitCode;

/// Events are made of many small strings that one thread makes and another frees; this allocator serves that at half the cost of the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    contrail::cli::main()
}
