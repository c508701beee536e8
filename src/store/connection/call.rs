//! A script, and one call of it.

use redis::cluster_routing::Slot;
use redis::{Arg, Cmd, ToRedisArgs};

/// A Lua script.
pub(in crate::store) struct Script {
    source: String,
    hash: String,
}

impl Script {
    pub(in crate::store) fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            hash: redis::Script::new(source).get_hash().to_owned(),
        }
    }
}

/// A script with the keys and arguments of one call.
pub(in crate::store) struct Call<'a> {
    script: &'a Script,
    pub(super) cmd: Cmd,
}

impl<'a> Call<'a> {
    /// `bytes`: the expected size of keys and arguments.
    pub(in crate::store) fn new(
        script: &'a Script,
        keys: usize,
        args: usize,
        bytes: usize,
    ) -> Self {
        let mut cmd = Cmd::with_capacity(3 + keys + args, 64 + bytes);
        cmd.arg("EVALSHA").arg(&script.hash).arg(keys);
        Self { script, cmd }
    }

    /// Adds the next key or, after all keys, the next argument.
    pub(in crate::store) fn push(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.cmd.arg(arg);
        self
    }

    /// The same call with the script in it, for a server that does not know the script yet. In a
    /// cluster it goes to the one node that is asked: a node that is away keeps no other from
    /// learning a script.
    pub(super) fn with_source(&self) -> Cmd {
        let parts = self.cmd.args_iter().skip(2);
        let bytes = self.cmd.get_packed_command().len();
        let mut cmd = Cmd::with_capacity(2 + parts.len(), bytes + self.script.source.len());
        cmd.arg("EVAL").arg(&self.script.source);
        for part in parts {
            if let Arg::Simple(part) = part {
                cmd.arg(part);
            }
        }
        cmd
    }

    /// The first key.
    pub(super) fn key(&self) -> &[u8] {
        match self.cmd.args_iter().nth(3) {
            Some(Arg::Simple(key)) => key,
            _ => &[],
        }
    }

    pub(super) fn slot(&self) -> Slot {
        Slot::for_key(self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_can_carry_its_script() {
        let script = Script::new("return KEYS[1]");
        let mut call = Call::new(&script, 1, 1, 16);
        call.push("p:{job}").push("argument");
        let parts = |cmd: &Cmd| -> Vec<Vec<u8>> {
            cmd.args_iter()
                .map(|part| match part {
                    Arg::Simple(part) => part.to_vec(),
                    _ => Vec::new(),
                })
                .collect()
        };
        let with_source = parts(&call.with_source());
        assert_eq!(with_source[..2], [&b"EVAL"[..], b"return KEYS[1]"]);
        assert_eq!(with_source[2..], parts(&call.cmd)[2..]);
        assert_eq!(call.key(), b"p:{job}");
        assert_eq!(call.slot(), Slot::for_key("p:{job}:3"));
    }
}
