//! Writes a job and its list as `multipart/form-data`. Neither can contain the boundary: both are
//! JSON, in which no line begins with two hyphens.

const BOUNDARY: &str = "fanwise";

pub(super) const CONTENT_TYPE: &str = "multipart/form-data; boundary=fanwise";

/// The boundary and the headers that begin a part.
pub(super) fn part(name: &str, file: Option<&str>) -> Vec<u8> {
    let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
    let head = format!(
        "\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n"
    );
    head.into_bytes()
}

pub(super) fn end() -> Vec<u8> {
    format!("\r\n--{BOUNDARY}--\r\n").into_bytes()
}
