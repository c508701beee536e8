//! What a message costs, in units of the limits of its target.

use std::collections::BTreeMap;

use super::limits::Weight;
use super::message::Content;

/// Most units of one message.
pub const COST_MAX: u32 = 1000;

const KILOBYTE: usize = 1024;

/// The prices of a target. By default every message costs one unit, whatever it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// By type of message; others cost one unit.
    pub types: BTreeMap<String, u32>,
    /// For each further kilobyte that a message begins.
    pub per_kilobyte: u32,
}

impl Prices {
    /// The units that a message takes for each call, or for each recipient, as its limit counts. A
    /// personal message costs what it costs before its texts are filled in.
    pub fn of(&self, content: &Content) -> Weight {
        Weight {
            units: self.units(content),
            max: self.most(),
        }
    }

    /// The most units that any message takes.
    pub fn most(&self) -> u32 {
        match self.per_kilobyte {
            0 => self.types.values().copied().max().unwrap_or(1),
            _ => COST_MAX,
        }
    }

    fn units(&self, content: &Content) -> u32 {
        let kind = self.types.get(content.kind()).copied().unwrap_or(1);
        if self.per_kilobyte == 0 {
            return kind;
        }
        let further = (crate::json::size(content).max(1) - 1) / KILOBYTE;
        let further = u32::try_from(further).unwrap_or(COST_MAX);
        let bytes = self.per_kilobyte.saturating_mul(further);
        kind.saturating_add(bytes).min(COST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_costs_by_its_type_and_size() {
        let text = |bytes: usize| Content::Text("x".repeat(bytes));
        assert_eq!(Prices::default().of(&text(5000)), Weight::ONE);
        let prices = Prices {
            types: [("text".to_owned(), 3)].into(),
            per_kilobyte: 2,
        };
        // The content as JSON, with its type, is a little longer than the text.
        for (bytes, units) in [(1, 3), (900, 3), (1024, 5), (1900, 5), (2100, 7)] {
            assert_eq!(prices.units(&text(bytes)), units, "{bytes}");
        }
        let dear = Prices {
            per_kilobyte: 999,
            ..prices
        };
        assert_eq!(dear.units(&text(20_000)), COST_MAX);
        assert_eq!(dear.units(&Content::Notice("x".to_owned())), 1);
    }
}
