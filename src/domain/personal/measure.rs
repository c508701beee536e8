//! Limits how deep a text may nest, before the engine reads it.
//!
//! The engine parses, compiles, compares, prints and drops by recursion, and its own guard covers
//! only a part of that: 6,000 minus signs once ended the process. So this module counts the
//! engine's own tokens first. Each level of a recursion needs a token, so these bounds hold for
//! every operator. Texts within the bounds, and values that a loop can nest within its fuel, get a
//! stack that is large enough.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// The most tokens of one `{{ … }}` or `{% … %}`: names, values, operators, brackets.
const TAG_TOKENS_MAX: usize = 300;

/// The most brackets that are open at a time.
const BRACKETS_MAX: usize = 16;

/// The most nested blocks. The engine reads an `elif` as a block within its `if`.
const BLOCKS_MAX: usize = 32;

/// The most tokens of a text without loops whose values fit on any stack, however they nest.
const FLAT_TOKENS_MAX: usize = 300;

/// The stack that a text within the bounds needs at most for compiling, and a flat one for
/// rendering.
const ROOM: usize = 1024 * 1024;

/// The stack that any text needs at most: fuel pays for some 13,000 levels of nested values.
const DEEP_ROOM: usize = 64 * 1024 * 1024;

/// The stack that rendering a text needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Depth {
    /// Values nest no deeper than the text is long.
    Flat,
    /// A loop, or a long text, may nest as many values as its fuel pays for.
    Deep,
}

impl Depth {
    /// Runs the engine with enough stack.
    pub(super) fn with_room<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Self::Flat => stacker::maybe_grow(ROOM, 4 * ROOM, work),
            Self::Deep => stacker::maybe_grow(DEEP_ROOM, DEEP_ROOM + ROOM, work),
        }
    }
}

/// Measures a text. If the engine cannot split it into tokens, its compiler reports why.
pub(super) fn depth(text: &str, syntax: &SyntaxConfig) -> Result<Depth, String> {
    let mut measure = Measure::default();
    for token in tokenize(text, false, syntax.clone()) {
        let Ok((token, span)) = token else { break };
        if let Err(what) = measure.count(&token) {
            return Err(format!("too deep: {what} (line {})", span.start_line));
        }
    }
    match measure.loops || measure.all > FLAT_TOKENS_MAX {
        true => Ok(Depth::Deep),
        false => Ok(Depth::Flat),
    }
}

#[derive(Default)]
struct Measure<'a> {
    /// The tokens of all tags.
    all: usize,
    /// The tokens of the current tag, and the brackets that are open in it.
    tag: usize,
    open: usize,
    /// The keyword of the current tag, if it is a statement.
    keyword: Option<&'a str>,
    statement: bool,
    assigns: bool,
    /// The levels that each open block takes.
    blocks: Vec<usize>,
    loops: bool,
}

impl<'a> Measure<'a> {
    fn count(&mut self, token: &Token<'a>) -> Result<(), String> {
        match token {
            Token::TemplateData(_) => return Ok(()),
            Token::VariableStart | Token::BlockStart => {
                (self.tag, self.open, self.assigns) = (0, 0, false);
                self.statement = matches!(token, Token::BlockStart);
                self.keyword = None;
                return Ok(());
            }
            Token::VariableEnd => return Ok(()),
            Token::BlockEnd => return self.statement(),
            Token::Ident(name) if self.statement && self.tag == 0 => self.keyword = Some(name),
            Token::Assign if self.open == 0 => self.assigns = true,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => self.open += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                self.open = self.open.saturating_sub(1);
            }
            _ => {}
        }
        self.all += 1;
        self.tag += 1;
        if self.tag > TAG_TOKENS_MAX {
            return Err(format!(
                "more than {TAG_TOKENS_MAX} names, values and operators between one pair of braces"
            ));
        }
        if self.open > BRACKETS_MAX {
            return Err(format!("more than {BRACKETS_MAX} nested brackets"));
        }
        Ok(())
    }

    /// Handles the end of a statement, which may begin or end a block.
    fn statement(&mut self) -> Result<(), String> {
        let Some(keyword) = self.keyword else {
            return Ok(());
        };
        match keyword {
            "for" => {
                self.loops = true;
                self.blocks.push(1);
            }
            "if" | "with" | "filter" | "autoescape" => self.blocks.push(1),
            "set" if !self.assigns => self.blocks.push(1),
            "elif" => {
                if let Some(levels) = self.blocks.last_mut() {
                    *levels += 1;
                }
            }
            end if end.starts_with("end") => {
                self.blocks.pop();
            }
            _ => {}
        }
        match self.blocks.iter().sum::<usize>() > BLOCKS_MAX {
            true => Err(format!(
                "more than {BLOCKS_MAX} nested blocks, each elif counted"
            )),
            false => Ok(()),
        }
    }
}
