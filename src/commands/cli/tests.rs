use std::collections::BTreeMap;

use clap::CommandFactory;

use super::*;

/// What the parser itself finds wrong with the definitions.
#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
}

/// An option that several subcommands have looks alike in all of them: short form, name of its value, heading. But what
/// they read and write has the shape that each needs, the numbers of `metrics` are computed by no engine, and pictures are resized
/// to a side where a network's are by a rule.
#[test]
fn shared_options_are_alike() {
    const OWN: [&str; 10] = [
        "output",
        "images",
        "reference",
        "key",
        "extractor",
        "bundle",
        "engines",
        "samples",
        "compare",
        "resize",
    ];
    let mut command = Cli::command();
    command.build();
    let mut seen = BTreeMap::new();
    let all = command.get_subcommands().flat_map(|c| c.get_arguments().map(move |a| (c, a)));
    for (command, arg) in all {
        let Some(long) = arg.get_long().filter(|long| !OWN.contains(long)) else { continue };
        // Threads of the metrics, and seeds of resampling and of weights, are other things.
        if ["metrics threads", "metrics seed", "synth seed"]
            .contains(&&*format!("{} {long}", command.get_name()))
        {
            continue;
        }
        let values: Vec<&str> = arg.get_value_names().into_iter().flatten().map(|n| n.as_str()).collect();
        let look = (arg.get_short(), values.join(" "), arg.get_help_heading().map(str::to_owned));
        let (first, there) =
            seen.entry(long.to_owned()).or_insert((command.get_name().to_owned(), look.clone()));
        assert_eq!(*there, look, "--{long} of {first} and of {}", command.get_name());
    }
}
