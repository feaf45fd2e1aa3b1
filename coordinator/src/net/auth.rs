//! The farm's shared token, asked for on every request but the probes'.

use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Lets requests in that carry the token. Only its hash is kept, and hashes are compared in constant time.
#[derive(Debug, Clone)]
pub struct Gate(Option<blake3::Hash>);

impl Gate {
    /// A gate for a token; `None` lets everyone in.
    pub fn new(token: Option<&str>) -> Self {
        Self(token.map(|t| blake3::hash(t.as_bytes())))
    }

    /// Whether it lets everyone in.
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this token opens it. (Hashes compare in constant time.)
    pub fn opens_to(&self, token: Option<&str>) -> bool {
        self.0.is_none_or(|expected| token.is_some_and(|t| blake3::hash(t.as_bytes()) == expected))
    }

    /// What stands for the token in a browser, for those who know it: it opens pages, and is of no use
    /// elsewhere.
    pub fn session(&self, token: &str) -> Option<String> {
        let hash = self.0.filter(|_| self.opens_to(Some(token)))?;
        Some(Self::session_of(hash).to_hex().to_string())
    }

    /// Whether this is what [`Self::session`] gave.
    pub fn knows_session(&self, session: &str) -> bool {
        let given = blake3::Hash::from_hex(session).ok();
        self.0.is_some_and(|hash| given.is_some_and(|given| given == Self::session_of(hash)))
    }

    fn session_of(hash: blake3::Hash) -> blake3::Hash {
        blake3::Hash::from_bytes(blake3::derive_key("gigasmith 2026 session of pages", hash.as_bytes()))
    }

    fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(expected) = &self.0 else { return Ok(()) };
        let header = metadata.get("authorization").and_then(|h| h.to_str().ok());
        let token = header.and_then(|h| h.strip_prefix("Bearer ")).ok_or_else(|| {
            Status::unauthenticated(
                "this farm asks for its token: pass --token-file with the file that holds it",
            )
        })?;
        // `blake3::Hash` compares in constant time.
        if blake3::hash(token.as_bytes()) == *expected {
            return Ok(());
        }
        Err(Status::unauthenticated(
            "this is not the farm's token: see that --token-file names the right file",
        ))
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.check(request.metadata()).map(|()| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens_the_gate() {
        let gate = Gate::new(Some("0123456789abcdef"));
        let with = |header: Option<&str>| {
            let mut metadata = MetadataMap::new();
            if let Some(header) = header {
                metadata.insert("authorization", header.parse().unwrap());
            }
            gate.check(&metadata).map_err(|s| s.message().to_owned())
        };
        assert_eq!(with(Some("Bearer 0123456789abcdef")), Ok(()));
        assert!(with(None).unwrap_err().contains("--token-file"));
        for wrong in ["Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert!(with(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(Gate::new(None).check(&MetadataMap::new()).is_ok());
    }
}
