//! Makes certificates with openssl: a CA of the test's own, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::scratch::Scratch;

/// A certificate authority in a folder that is deleted with it.
pub(crate) struct Authority {
    folder: Scratch,
}

/// A certificate with its key, as PEM files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

const CONFIG: &str = "
[ca]
default_ca = own
[own]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
";

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let folder = Scratch::new(&format!("ca-{name}"));
        fs::write(folder.path().join("config"), CONFIG).unwrap();
        fs::write(folder.path().join("index.txt"), "").unwrap();
        fs::write(folder.path().join("serial"), "01").unwrap();
        let authority = Self { folder };
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
             -keyout ca.key -out ca.pem -subj /CN={name}"
        ));
        authority
    }

    /// The certificate of the CA.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate that is valid now, for these names, such as `IP:127.0.0.1,DNS:localhost`.
    pub(crate) fn sign(&self, common_name: &str, names: &str) -> Pair {
        self.sign_until(common_name, names, "20491231235959Z")
    }

    /// A certificate that ended long ago.
    pub(crate) fn sign_expired(&self, common_name: &str, names: &str) -> Pair {
        self.sign_until(common_name, names, "20200102000000Z")
    }

    fn sign_until(&self, common_name: &str, names: &str, end: &str) -> Pair {
        let id = format!("{common_name}-{:x}", fastrand::u32(..));
        let extensions = format!(
            "subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
        );
        fs::write(self.folder.path().join("extensions"), extensions).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {id}.key \
             -out {id}.csr -subj /CN={common_name}"
        ));
        self.openssl(&format!(
            "ca -batch -notext -config config -in {id}.csr -cert ca.pem -keyfile ca.key \
             -startdate 20200101000000Z -enddate {end} -extfile extensions -out {id}.pem"
        ));
        Pair {
            certificate: self.folder.path().join(format!("{id}.pem")),
            key: self.folder.path().join(format!("{id}.key")),
        }
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .output()
            .expect("openssl is needed for the tests of TLS");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {said}");
    }
}

impl Pair {
    /// Copies both files over those of another pair, the certificate last.
    pub(crate) fn replace(&self, other: &Self) {
        copy(&self.key, &other.key);
        copy(&self.certificate, &other.certificate);
    }
}

/// Replaces a file in one step, as deployments do.
pub(crate) fn copy(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).unwrap();
    fs::rename(beside, to).unwrap();
}
