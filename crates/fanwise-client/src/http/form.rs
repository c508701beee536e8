//! Writes a job and its list as `multipart/form-data`.

/// The lines between the parts of a form. Each form has its own, which no list can foresee.
pub(super) struct Form {
    boundary: String,
}

impl Form {
    pub(super) fn new() -> Self {
        Self {
            boundary: format!(
                "fanwise-{:016x}{:016x}",
                fastrand::u64(..),
                fastrand::u64(..)
            ),
        }
    }

    pub(super) fn content_type(&self) -> String {
        format!("multipart/form-data; boundary={}", self.boundary)
    }

    /// The boundary and the headers that begin a part.
    pub(super) fn part(&self, name: &str, file: Option<&str>) -> Vec<u8> {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        let head = format!(
            "\r\n--{}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n",
            self.boundary
        );
        head.into_bytes()
    }

    pub(super) fn end(&self) -> Vec<u8> {
        format!("\r\n--{}--\r\n", self.boundary).into_bytes()
    }
}
