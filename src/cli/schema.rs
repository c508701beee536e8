//! `fanwise schema`: the public formats as JSON Schema, AsyncAPI and OpenAPI.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::output;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::schema::{DOCUMENTS, document};

#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// Document to print
    #[arg(value_enum, default_value = "job")]
    which: Which,
    /// Write all documents into this folder instead
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    Job,
    DeadLetter,
    JobEvent,
    Asyncapi,
    /// The HTTP interface as OpenAPI 3.1
    Openapi,
    /// How each target maps the fields of a job, as Markdown
    Mapping,
}

pub(super) fn run(args: &SchemaArgs) -> Result<Exit, Failure> {
    if let Some(folder) = &args.write {
        std::fs::create_dir_all(folder).or_exit(Exit::Unavailable)?;
        for name in DOCUMENTS {
            std::fs::write(folder.join(name), document(name)).or_exit(Exit::Unavailable)?;
        }
        return Ok(Exit::Ok);
    }
    let name = match args.which {
        Which::Job => "job.schema.json",
        Which::DeadLetter => "dead-letter.schema.json",
        Which::JobEvent => "job-event.schema.json",
        Which::Asyncapi => "asyncapi.json",
        Which::Openapi => "openapi.json",
        Which::Mapping => "mapping.md",
    };
    output::line(document(name).trim_end())?;
    Ok(Exit::Ok)
}
