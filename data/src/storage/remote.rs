//! Requests for one remote file or prefix: its version, parts of it, its listing, and writing it.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutPayload};

use super::client::{Client, Clients, LAST};
use super::location::RemoteUrl;
use super::options::StorageOptions;
use super::retry::{Failure, Retry};
use super::version::Version;

/// Remote file or prefix and the client that reaches it.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) url: RemoteUrl,
    path: ObjectPath,
    client: Client,
    options: Arc<StorageOptions>,
}

impl Remote {
    pub(super) fn new(
        url: &RemoteUrl,
        clients: &Clients,
        options: &Arc<StorageOptions>,
    ) -> io::Result<Self> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let path = url.object_path().map_err(invalid)?;
        let client = clients.get(url, options).map_err(invalid)?;
        Ok(Self { url: url.clone(), path, client, options: Arc::clone(options) })
    }

    fn retry(&self) -> Retry<'_> {
        Retry::new(&self.url, self.options.retry_timeout)
    }

    /// Failure of the last request.
    fn failure(&self, error: &object_store::Error) -> Failure {
        let last = LAST.try_with(|last| last.borrow_mut().take()).ok().flatten();
        let mut failure = Failure::new(error, last, &self.url);
        failure.is_first_contact = !self.client.answered.load(Ordering::Relaxed);
        failure
    }

    /// Version of the file now.
    pub(super) async fn version(self) -> io::Result<Version> {
        let mut retry = self.retry();
        loop {
            match self.version_once().await {
                Ok(version) if version.is_known() => return Ok(version),
                Ok(_) => {
                    let text = "the server gives neither an ETag nor a time of last change for \
                                this file, so a change during a run would not be noticed; use \
                                another server, or download the file";
                    return Err(io::Error::new(io::ErrorKind::Unsupported, text));
                }
                Err(failure) => retry.after(failure, false).await?,
            }
        }
    }

    /// A request for the first byte shows whether the server supports ranges, and its errors have
    /// a text. Those of a HEAD request have none.
    async fn version_once(&self) -> Result<Version, Failure> {
        let first = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        match self.client.store.get_opts(&self.path, first).await {
            Ok(answer) => {
                let version = Version::remote(&answer.meta);
                // The connection can be used again when the body has been read.
                answer.bytes().await.map_err(|error| self.failure(&error))?;
                Ok(version)
            }
            Err(error) => {
                let failure = self.failure(&error);
                // An empty file has no first byte.
                if failure.kind != io::ErrorKind::UnexpectedEof {
                    return Err(failure);
                }
                let meta = self.client.store.head(&self.path).await;
                meta.map(|meta| Version::remote(&meta)).map_err(|error| self.failure(&error))
            }
        }
    }

    /// Bytes `range` of the file, which must still have the version `expected`. The range must lie
    /// within the file.
    pub(super) async fn read(self, range: Range<u64>, expected: Version) -> io::Result<Vec<u8>> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut retry = self.retry();
        loop {
            let before = bytes.len();
            match self.read_once(&mut bytes, &range, length, &expected).await {
                Ok(()) => return Ok(bytes),
                Err(failure) => retry.after(failure, bytes.len() > before).await?,
            }
        }
    }

    /// Requests the bytes of `range` that are not in `bytes` yet, and appends those that arrive.
    async fn read_once(
        &self,
        bytes: &mut Vec<u8>,
        range: &Range<u64>,
        length: usize,
        expected: &Version,
    ) -> Result<(), Failure> {
        let start = range.start + u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let wanted = GetRange::Bounded(start..range.end);
        let options = GetOptions { range: Some(wanted), ..GetOptions::default() };
        let answer = self.client.store.get_opts(&self.path, options).await;
        let answer = answer.map_err(|error| self.failure(&error))?;
        if let Some(change) = expected.change(&Version::remote(&answer.meta)) {
            let text = format!(
                "the file changed while it was in use ({change}); files of a run must stay as \
                 they are, so write a changed file under another name"
            );
            return Err(Failure::permanent(io::ErrorKind::InvalidData, text));
        }
        let mut body = answer.into_stream();
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| {
                let at = bytes.len();
                let reason = super::retry::chain(&error);
                Failure::passing(format!("the answer broke after {at} of {length} bytes: {reason}"))
            })?;
            if part.len() > length - bytes.len() {
                let text = format!("the server sent more than the {length} bytes requested");
                return Err(Failure::permanent(io::ErrorKind::InvalidData, text));
            }
            bytes.extend_from_slice(&part);
        }
        if bytes.len() < length {
            let text = format!("the answer ended after {} of {length} bytes", bytes.len());
            return Err(Failure::passing(text));
        }
        Ok(())
    }

    /// Files directly under this prefix, page by page.
    pub(super) async fn list(self) -> io::Result<Vec<ObjectMeta>> {
        let Some(lister) = &self.client.lister else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let prefix = Some(&*self.url.key).filter(|key| !key.is_empty());
        let (mut found, mut page_token) = (Vec::new(), None);
        loop {
            let mut retry = self.retry();
            let page = loop {
                let options = PaginatedListOptions {
                    delimiter: Some("/".into()),
                    page_token: Option::<String>::clone(&page_token),
                    ..PaginatedListOptions::default()
                };
                match lister.list_paginated(prefix, options).await {
                    Ok(page) => break page,
                    Err(error) => retry.after(self.failure(&error), false).await?,
                }
            };
            found.extend(page.result.objects);
            if page.page_token.is_some() && page.page_token == page_token {
                return Err(io::Error::other("the server sends the same page of the list again"));
            }
            page_token = page.page_token;
            if page_token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Replaces the file by `bytes`.
    pub(super) async fn write(self, bytes: Vec<u8>) -> io::Result<()> {
        let payload = PutPayload::from(bytes);
        let mut retry = self.retry();
        loop {
            match self.client.store.put(&self.path, payload.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => retry.after(self.failure(&error), false).await?,
            }
        }
    }
}
