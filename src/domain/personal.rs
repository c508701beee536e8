//! Personal messages: texts with placeholders, filled in for each recipient.
//!
//! The texts of a job are compiled once per slice. For a recipient they are rendered with its own values
//! over those of the message. A value that is missing is this recipient's failure, by name, unless the
//! text gives a default. `null` counts as missing, as in all our documents.
//!
//! A template is data from a producer, so it can do nothing but read those values: no includes, no
//! imports, no macros. Fuel pays for every step and every byte a rendering makes, so that neither work
//! nor memory grows past a bound, whatever a template says; how deep it may go is measured before it is
//! compiled (`measure`). The same template and values give the same bytes: a call that is repeated says
//! the same.

mod measure;
mod names;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::value::RawValue;

use self::measure::Depth;
use super::fields::{Problem, Problems, shorten};
use super::message::{Content, DATA_BYTES_MAX, LINE_BYTES_MAX, Options, TEXT_BYTES_MAX};
use super::slice::Head;
use crate::json::joined;

/// What one recipient's texts may cost together: a unit is one step, or 64 bytes made on the way, so
/// little more than a megabyte. A loop over a hundred items takes a thousand or so.
const FUEL: u64 = 20_000;

/// Most texts with placeholders in one message.
const TEXTS_MAX: usize = 100;

/// A personal job, ready to be rendered.
pub struct Personal {
    head: Arc<Head>,
    form: Form,
}

impl Personal {
    /// Compiles the texts of a job. Nothing for a job without values, or without placeholders: it says
    /// the same to everybody.
    pub fn of(head: &Arc<Head>) -> Result<Option<Self>, Vec<Problem>> {
        let Some(vars) = &head.vars else {
            return Ok(None);
        };
        let form = Form::of(&head.content, &head.options, vars)?;
        Ok(form.map(|form| Self {
            head: Arc::clone(head),
            form,
        }))
    }

    /// The job as one recipient gets it, or why it cannot have it.
    pub fn render(&self, vars: Option<&RawValue>) -> Result<Arc<Head>, Problem> {
        let mut head = Head {
            vars: None,
            ..(*self.head).clone()
        };
        for (place, rendered) in self.form.fill(vars).map_err(|unfilled| unfilled.problem)? {
            place.put(&mut head, rendered);
        }
        Ok(Arc::new(head))
    }
}

/// The texts of a message with the values that all recipients share.
pub(super) struct Form {
    texts: Texts,
    defaults: Values,
}

type Values = BTreeMap<String, Value>;

/// Why a recipient cannot have its message.
#[derive(Debug)]
pub(super) struct Unfilled {
    pub(super) problem: Problem,
    /// The value that is lacking, where that is why.
    pub(super) lacks: Option<String>,
}

impl From<Problem> for Unfilled {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            lacks: None,
        }
    }
}

impl Form {
    /// Nothing where there are no placeholders.
    pub(super) fn of(
        content: &Content,
        options: &Options,
        vars: &RawValue,
    ) -> Result<Option<Self>, Vec<Problem>> {
        let texts = Texts::of(content, options)?;
        if texts.texts.is_empty() {
            return Ok(None);
        }
        let defaults = read_values(vars, "message.vars").map_err(|problem| vec![problem])?;
        Ok(Some(Self { texts, defaults }))
    }

    /// The texts as one recipient gets them.
    fn fill(&self, vars: Option<&RawValue>) -> Result<Vec<(Place, String)>, Unfilled> {
        let mut values = self.defaults.clone();
        if let Some(vars) = vars {
            values.extend(read_values(vars, "vars")?);
        }
        let values = Value::from(values);
        let texts = self.texts.texts.iter();
        texts
            .map(|text| Ok((text.place, self.texts.render(text, &values)?)))
            .collect()
    }

    /// Whether one recipient can have its message.
    pub(super) fn try_out(&self, vars: Option<&RawValue>) -> Result<(), Unfilled> {
        self.fill(vars).map(drop)
    }

    /// Whether a text takes a value of this name from outside.
    pub(super) fn reads(&self, name: &str) -> bool {
        let engine = &self.texts.engine;
        let reads = || {
            let mut templates = engine.templates();
            templates.any(|(_, template)| template.undeclared_variables(false).contains(name))
        };
        guarded(Depth::Flat, reads).unwrap_or(false)
    }
}

/// What is wrong with the placeholders of a message.
pub fn problems(content: &Content, options: &Options) -> Vec<Problem> {
    Texts::of(content, options).err().unwrap_or_default()
}

fn read_values(vars: &RawValue, field: &str) -> Result<Values, Problem> {
    let mut values: Values = serde_json::from_str(vars.get())
        .map_err(|error| Problem::new(field, format!("a JSON object is expected: {error}")))?;
    values.retain(|_, value| !value.is_none());
    Ok(values)
}

// ---------------------------------------------------------------------------------------------
// Where texts stand
// ---------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Text,
    Title,
    Name,
    Data,
    PushTitle,
    PushText,
    Extension,
}

impl Place {
    fn field(self) -> &'static str {
        match self {
            Self::Text => "message.text",
            Self::Title => "message.title",
            Self::Name => "message.name",
            Self::Data => "message.data",
            Self::PushTitle => "options.push.title",
            Self::PushText => "options.push.text",
            Self::Extension => "options.extension",
        }
    }

    /// How many bytes it may have, as the reader of jobs says.
    fn bytes(self) -> (usize, usize) {
        match self {
            Self::Text => (1, TEXT_BYTES_MAX),
            Self::Title | Self::Name => (1, LINE_BYTES_MAX),
            Self::PushTitle => (0, LINE_BYTES_MAX),
            Self::PushText => (0, TEXT_BYTES_MAX),
            Self::Data | Self::Extension => (0, DATA_BYTES_MAX),
        }
    }

    fn put(self, head: &mut Head, rendered: String) {
        let push = &mut head.options.push;
        match (self, &mut head.content) {
            (Self::Text, Content::Text(text) | Content::Notice(text)) => *text = rendered,
            (Self::Text, Content::Mention { text, .. }) => *text = rendered,
            (Self::Title, Content::Location { title, .. }) => *title = rendered,
            (Self::Name, Content::Image(file) | Content::Audio(file)) => file.name = Some(rendered),
            (Self::Name, Content::Video(file) | Content::File(file)) => file.name = Some(rendered),
            (Self::Data, Content::Custom(data)) => *data = joined(rendered),
            (Self::PushTitle, _) => push.get_or_insert_default().title = Some(rendered),
            (Self::PushText, _) => push.get_or_insert_default().text = Some(rendered),
            (Self::Extension, _) => head.options.extension = Some(joined(rendered)),
            // A text is compiled from the place that it is put back to.
            (Self::Text | Self::Title | Self::Name | Self::Data, _) => {}
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Compiling and rendering
// ---------------------------------------------------------------------------------------------

/// The texts of a message that have placeholders, compiled.
struct Texts {
    engine: Environment<'static>,
    depth: Depth,
    texts: Vec<Text>,
}

struct Text {
    place: Place,
    pieces: Vec<Piece>,
}

enum Piece {
    /// JSON that stays as it is.
    Kept(String),
    /// The whole text, by the name of its template.
    Plain(String),
    /// A text within JSON, by the name of its template.
    Quoted(String),
}

impl Texts {
    fn of(content: &Content, options: &Options) -> Result<Self, Vec<Problem>> {
        let mut compiler = Compiler {
            texts: Self {
                engine: engine(),
                depth: Depth::Flat,
                texts: Vec::new(),
            },
            templates: 0,
            problems: Problems::default(),
        };
        compiler.content(content);
        compiler.options(options);
        compiler.finish()
    }

    /// Compiles a template, unless it goes too deep or calls what is not there.
    fn compile(&mut self, name: &str, text: &str) -> Result<(), String> {
        let depth = measure::depth(text, self.engine.syntax())?;
        self.depth = self.depth.max(depth);
        // Compiling goes no deeper than a flat text, whatever rendering does.
        guarded(Depth::Flat, || {
            let added = self
                .engine
                .add_template_owned(name.to_owned(), text.to_owned());
            added.map_err(|error| why(&error))?;
            let template = self
                .engine
                .get_template(name)
                .map_err(|error| why(&error))?;
            names::missing(&self.engine, &template).map_or(Ok(()), Err)
        })?
    }

    fn render(&self, text: &Text, values: &Value) -> Result<String, Unfilled> {
        let (least, most) = text.place.bytes();
        let mut whole = String::new();
        for piece in &text.pieces {
            match piece {
                Piece::Kept(json) => whole.push_str(json),
                Piece::Plain(template) => whole.push_str(&self.piece(text, template, values)?),
                Piece::Quoted(template) => {
                    let rendered = self.piece(text, template, values)?;
                    whole.push_str(&serde_json::Value::from(rendered).to_string());
                }
            }
            if whole.len() > most {
                break;
            }
        }
        let problem = |what: String| Err(Problem::new(text.place.field(), what).into());
        match whole.len() {
            size if size < least => problem("is empty once it is filled in".to_owned()),
            size if size > most => problem(format!("more than {most} bytes once it is filled in")),
            _ => Ok(whole),
        }
    }

    /// Renders one template. Errors hold values, so they end where there is room too.
    fn piece(&self, text: &Text, template: &str, values: &Value) -> Result<String, Unfilled> {
        let unfilled = |(what, lacks)| Unfilled {
            problem: Problem::new(text.place.field(), what),
            lacks,
        };
        let render = || {
            let template = self.engine.get_template(template);
            let rendered = template.and_then(|it| it.render(values.clone()));
            rendered.map_err(|error| (why(&error), lacks(&error).map(str::to_owned)))
        };
        guarded(self.depth, render)
            .unwrap_or_else(|broken| Err((broken, None)))
            .map_err(unfilled)
    }
}

/// Runs the engine over a text from outside, with room, and outlives a mistake of the engine's own.
fn guarded<R>(depth: Depth, work: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(|| depth.with_room(work)))
        .map_err(|_| "cannot be filled in: the engine for placeholders failed over it".to_owned())
}

fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_auto_escape_callback(|_| AutoEscape::None);
    // The last line break is part of a text. The delimiters are the usual ones, so this is a syntax.
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        engine.set_syntax(syntax);
    }
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    // `null` deep inside a value would be written out as a word.
    engine.set_formatter(|out, state, value| match value.is_none() {
        true => Err(Error::new(ErrorKind::UndefinedError, "a value is null")),
        false => minijinja::escape_formatter(out, state, value),
    });
    // So that errors name the variable.
    engine.set_debug(true);
    engine.remove_global("debug");
    // For people who write templates, and its work grows with the cube of a value's depth.
    engine.remove_filter("pprint");
    engine
}

struct Compiler {
    texts: Texts,
    templates: usize,
    problems: Problems,
}

impl Compiler {
    fn content(&mut self, content: &Content) {
        match content {
            Content::Text(text) | Content::Notice(text) | Content::Mention { text, .. } => {
                self.plain(Place::Text, text);
            }
            Content::Image(file)
            | Content::Audio(file)
            | Content::Video(file)
            | Content::File(file) => self.plain(Place::Name, file.name.as_deref().unwrap_or("")),
            Content::Location { title, .. } => self.plain(Place::Title, title),
            Content::Custom(data) => self.json(Place::Data, data),
            Content::Raw(_) | Content::Native | Content::Template(_) => {}
        }
    }

    fn options(&mut self, options: &Options) {
        if let Some(push) = &options.push {
            self.plain(Place::PushTitle, push.title.as_deref().unwrap_or(""));
            self.plain(Place::PushText, push.text.as_deref().unwrap_or(""));
        }
        if let Some(extension) = &options.extension
            && extension.get().starts_with('"')
        {
            self.json(Place::Extension, extension);
        }
    }

    fn plain(&mut self, place: Place, text: &str) {
        if has_placeholder(text) {
            let pieces = vec![Piece::Plain(self.template(place, text))];
            self.texts.texts.push(Text { place, pieces });
        }
    }

    /// The texts within a JSON value, keys left out. The rest stays byte for byte as it is.
    fn json(&mut self, place: Place, json: &RawValue) {
        let json = json.get();
        let mut pieces = Vec::new();
        let mut kept = 0;
        for range in json_texts(json) {
            // What is no text has no placeholder, and stays as it is.
            let text: Result<String, _> = serde_json::from_str(&json[range.clone()]);
            if let Ok(text) = text
                && has_placeholder(&text)
            {
                pieces.push(Piece::Kept(json[kept..range.start].to_owned()));
                pieces.push(Piece::Quoted(self.template(place, &text)));
                kept = range.end;
            }
        }
        if !pieces.is_empty() {
            pieces.push(Piece::Kept(json[kept..].to_owned()));
            self.texts.texts.push(Text { place, pieces });
        }
    }

    /// Compiles a template; returns its name.
    fn template(&mut self, place: Place, text: &str) -> String {
        self.templates += 1;
        let name = self.templates.to_string();
        if self.templates > TEXTS_MAX {
            if self.templates == TEXTS_MAX + 1 {
                let what = format!("more than {TEXTS_MAX} texts with placeholders");
                self.problems.push(Problem::new(place.field(), what));
            }
        } else if let Err(what) = self.texts.compile(&name, text) {
            let what = format!("not a template: {what}");
            self.problems.push(Problem::new(place.field(), what));
        }
        name
    }

    fn finish(mut self) -> Result<Texts, Vec<Problem>> {
        if !self.problems.is_empty() {
            return Err(self.problems.into());
        }
        let fuel = FUEL / self.templates.max(1) as u64;
        self.texts.engine.set_fuel(Some(fuel));
        Ok(self.texts)
    }
}

fn has_placeholder(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// Where the texts of a JSON value stand, with their quotes; keys are none.
fn json_texts(json: &str) -> Vec<std::ops::Range<usize>> {
    let bytes = json.as_bytes();
    let mut texts = Vec::new();
    let mut at = 0;
    while let Some(start) = bytes[at..].iter().position(|byte| *byte == b'"') {
        let start = at + start;
        let mut end = start + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        at = (end + 1).min(bytes.len());
        let mut after = bytes[at..]
            .iter()
            .filter(|byte| !byte.is_ascii_whitespace());
        if after.next() != Some(&b':') {
            texts.push(start..at);
        }
    }
    texts
}

/// The engine's words without its own name for the template.
fn why(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "takes too much work, or makes too long a text".to_owned();
    }
    if let Some(variable) = lacks(error) {
        return format!("undefined variable {variable:?}");
    }
    let line = error.line().unwrap_or(1);
    match error.detail() {
        Some(detail) => {
            let detail = shorten(detail, DETAIL_SHOWN);
            format!("{}: {detail} (line {line})", error.kind())
        }
        None => format!("{} (line {line})", error.kind()),
    }
}

/// Most of the engine's own words that are repeated.
const DETAIL_SHOWN: usize = 200;

/// The variable that an error of the engine says is missing.
fn lacks(error: &Error) -> Option<&str> {
    let (before, _) = error.detail()?.split_once("` is undefined")?;
    Some(before.rsplit_once('`')?.1)
}

#[cfg(test)]
mod tests;
