//! Redirects, credentials, certificates.

use std::{fs, os::unix::fs::PermissionsExt};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::*;

fn credentials(rig: &Rig, text: &str) -> PathBuf {
    let path = rig.dir.path().join("credentials");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn redirects_are_followed_and_circles_are_not() {
    let (server, other) = (Server::start(LEN), Server::start(LEN));
    let rig = Rig::new();
    let url = server.url("/x.iso");
    for (location, kind) in [
        (url.clone(), UrlErrorKind::RedirectLoop),
        ("file:///etc/passwd".to_owned(), UrlErrorKind::RedirectRefused),
        ("ftp://h/x".to_owned(), UrlErrorKind::RedirectRefused),
    ] {
        server.be(Mood::Redirect(location));
        assert_eq!(rig.refusal(&url), kind);
    }
    server.be(Mood::RedirectOn);
    assert_eq!(rig.refusal(&url), UrlErrorKind::RedirectLoop);
    assert!(server.seen().len() < 20);
    server.be(Mood::Redirect(other.url("/y.iso?signature=1")));
    let inserted = rig.insert(&url).unwrap();
    inserted.check_whole(1);
    assert_eq!(inserted.image.name(), url);
    // Where it led to is remembered.
    assert!(other.seen().len() > 2 && server.seen().len() < 20);
}

#[test]
fn credentials_reach_their_server_and_no_other() {
    let (server, other) = (Server::start(CHUNK), Server::start(CHUNK));
    let rig = Rig::new();
    let file = credentials(&rig, &format!("{} bearer s3cret\n", server.url("")));
    let options = UrlOptions { credentials: Some(file.clone()), ..wish(&server.url("/x.iso")) };
    drop(rig.insert_as(options.clone()).unwrap());
    assert_eq!(server.seen().last().unwrap().authorization.as_deref(), Some("Bearer s3cret"));
    server.be(Mood::Redirect(other.url("/y.iso")));
    drop(rig.insert_as(options.clone()).unwrap());
    assert_eq!(other.seen().last().unwrap().authorization, None);
    let url = server.url("/z.iso").replace("http://", "http://me:pass@");
    let inserted = rig.insert(&url).unwrap();
    assert!(server.seen().last().unwrap().authorization.as_ref().unwrap().starts_with("Basic "));
    assert_eq!(other.seen().last().unwrap().authorization, None);
    let shown = format!("{:?} {}", inserted.image, inserted.image.name());
    assert!(!shown.contains("pass") && !shown.contains("s3cret"), "{shown}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let error = rig.insert_as(options).map(drop).unwrap_err();
    assert!(error.to_string().contains("chmod"), "{error}");
}

/// A CA of our own, and a server with a certificate of it for `name`.
fn secure_server(name: &str) -> (Server, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
    let server = Server::start_at("127.0.0.1:0".parse().unwrap(), LEN, Some(Arc::new(config)));
    (server, authority.pem())
}

#[test]
fn a_certificate_counts_only_for_its_name_and_from_its_authority() {
    let (server, pem) = secure_server("127.0.0.1");
    let trusting = |pem: &str| {
        let rig = Rig::with(|_| {});
        let path = rig.dir.path().join("ca.pem");
        fs::write(&path, pem).unwrap();
        let mut options = options(&rig.dir.path().join("cache"));
        options.ca_file = Some(path);
        Rig { cache: Cache::new(options), ..rig }
    };
    let rig = trusting(&pem);
    let inserted = rig.insert(&server.url("/x.iso")).unwrap();
    inserted.check_whole(1);
    // A secure server does not lead to one that is not.
    let plain = Server::start(LEN);
    server.be(Mood::Redirect(plain.url("/x.iso")));
    assert_eq!(rig.refusal(&server.url("/y.iso")), UrlErrorKind::RedirectRefused);
    assert!(plain.seen().is_empty());
    assert_eq!(Rig::new().refusal(&server.url("/x.iso")), UrlErrorKind::Tls);
    let (other, other_pem) = secure_server("files.example");
    assert_eq!(trusting(&other_pem).refusal(&other.url("/x.iso")), UrlErrorKind::Tls);
    assert_eq!(trusting(&pem).refusal(&other.url("/x.iso")), UrlErrorKind::Tls);
    assert!(matches!(trusting("nothing").refusal(&other.url("/x")), UrlErrorKind::CaFile { .. }));
}
