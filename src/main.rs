//! The `dpar-export` binary.

fn main() -> std::process::ExitCode {
    dpar_export::commands::main()
}
