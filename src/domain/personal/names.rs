//! Checks that everything exists that a text calls by name. A missing function is missing for every
//! recipient, so it refuses the job, even if only some recipients would reach the call.

use std::collections::BTreeSet;

use minijinja::machinery::{Instruction, get_compiled_template};
use minijinja::{Environment, ErrorKind, Template};

use crate::domain::fields::shorten;

/// The methods that exist, all of them of `loop`.
const METHODS: [&str; 2] = ["changed", "cycle"];

/// The longest name that is repeated whole.
const NAME_SHOWN: usize = 64;

/// The first missing thing that a compiled text calls, if any.
pub(super) fn missing<'env>(
    engine: &Environment<'env>,
    template: &Template<'env, 'env>,
) -> Option<String> {
    let instructions = &get_compiled_template(template).instructions;
    let all = || (0..).map_while(|at| instructions.get(at));
    let assigned: BTreeSet<&str> = all()
        .filter_map(|it| match it {
            Instruction::StoreLocal(name) => Some(*name),
            _ => None,
        })
        .collect();
    let mut state = engine.empty_state();
    let known_function = |name: &str| {
        name == "loop"
            || assigned.contains(name)
            || engine.globals().any(|(global, _)| global == name)
    };
    let missing = all().enumerate().find_map(|(at, it)| {
        let (what, name) = match it {
            Instruction::ApplyFilter(name, ..) => match state.apply_filter(name, &[]) {
                Err(error) if error.kind() == ErrorKind::UnknownFilter => ("filter", name),
                _ => return None,
            },
            Instruction::PerformTest(name, ..) => match state.perform_test(name, &[]) {
                Err(error) if error.kind() == ErrorKind::UnknownTest => ("test", name),
                _ => return None,
            },
            Instruction::CallFunction(name, _) if !known_function(name) => ("function", name),
            Instruction::CallMethod(name, _) if !METHODS.contains(name) => ("method", name),
            // The engine would divide by zero; it may do so too where a list is spread out.
            Instruction::CallMethod("cycle", Some(1) | None) => {
                return Some((at, "`cycle` needs something to choose from".to_owned()));
            }
            _ => return None,
        };
        let name = shorten(name, NAME_SHOWN);
        let instead = match what {
            "method" => "; values have filters instead, such as `name|upper`",
            _ => "",
        };
        Some((at, format!("there is no {what} `{name}`{instead}")))
    });
    let (at, what) = missing?;
    let line = instructions.get_line(at as u32).unwrap_or(1);
    Some(format!("{what} (line {line})"))
}
