//! The `contrail` binary: arguments in, exit code out. Everything else is the library's.

use std::process::ExitCode;

/// Events are made of many small strings that one thread makes and another frees. This allocator serves that from pages it holds already, where
/// others take ever fresh ones from the kernel, which clears each; and gives back what is not used again within seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    contrail::cli::main()
}
