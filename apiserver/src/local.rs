//! Clients in the server's own process: requests go to the router without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tower::ServiceExt;

use crate::auth::User;

/// Bytes on their way in each direction of a connection that was upgraded.
const PIPE: usize = 64 * 1024;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A client that acts as `user`.
pub fn client(router: Router, user: Arc<User>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (router, user) = (router.clone(), user.clone());
        async move {
            let mut request = request.map(Body::new);
            if request.headers().contains_key(header::UPGRADE) {
                return over_a_pipe(router, user, request).await;
            }
            request.extensions_mut().insert(user);
            let Ok(response) = router.oneshot(request).await;
            Ok::<_, Failure>(response)
        }
    });
    kube::Client::new(service, "default")
}

/// An upgrade needs a connection that can be handed over, so here is one, of memory.
async fn over_a_pipe(
    router: Router,
    user: Arc<User>,
    request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let (near, far) = tokio::io::duplex(PIPE);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(user.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let server = hyper::server::conn::http1::Builder::new();
    tokio::spawn(
        server
            .serve_connection(TokioIo::new(far), service)
            .with_upgrades(),
    );
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(requests.send_request(request).await?.map(Body::new))
}
