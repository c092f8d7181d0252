"""The embedded authority as an independent Workload API client sees it.

usage: workload_api.py SOCKET SPIFFE_ID ROTATIONS

SOCKET is unix:///PATH and SPIFFE_ID one of the workload's IDs, all of which are looked at.
Follows the X.509-SVID of that ID over ROTATIONS rotations, then prints what was seen as one JSON
object. Whatever the library refuses ends the program with its error.
"""

import json
import sys
import threading
import time

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import JwtSource, JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffe._proto import workload_pb2, workload_pb2_grpc

AUDIENCE = "portarium-tests"
PATIENCE = 60.0


def x509(client, wanted):
    """All SVIDs, as parsed by the library, verified against the bundle of their trust domain."""
    context = client.fetch_x509_context()
    bundles = client.fetch_x509_bundles()
    svids = []
    for svid in context.x509_svids:
        domain = svid.spiffe_id.trust_domain
        authorities = bundles.get_bundle_for_trust_domain(domain).x509_authorities
        verify_issued_by(svid.leaf, authorities)
        same_key(svid.leaf.public_key(), svid.private_key.public_key())
        svids.append(str(svid.spiffe_id))
    assert str(wanted) in svids, f"{wanted} is not among {svids}"
    return svids


def verify_issued_by(leaf, authorities):
    for authority in authorities:
        if authority.subject == leaf.issuer:
            authority.public_key().verify(
                leaf.signature, leaf.tbs_certificate_bytes, ec.ECDSA(leaf.signature_hash_algorithm)
            )
            return
    raise AssertionError("no authority of the bundle issued the SVID")


def same_key(one, other):
    def spki(key):
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    assert spki(one) == spki(other), "the private key is another certificate's"


def jwt(client, wanted):
    """A JWT-SVID: fetched, verified here with the JWT bundle, and validated by the authority."""
    svid = client.fetch_jwt_svid({AUDIENCE}, subject=wanted)
    bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(wanted.trust_domain)
    verified = JwtSvid.parse_and_validate(svid.token, bundle, {AUDIENCE})
    validated = client.validate_jwt_svid(svid.token, AUDIENCE)
    assert svid.spiffe_id == verified.spiffe_id == validated.spiffe_id == wanted
    refused = {
        "another audience": (svid.token, "another"),
        "a changed signature": (svid.token[:-8] + "AAAAAAAA", AUDIENCE),
    }
    for what, (token, audience) in refused.items():
        try:
            client.validate_jwt_svid(token, audience)
        except Exception:
            continue
        raise AssertionError(f"{what} was accepted")
    return {
        "subject": str(verified.spiffe_id),
        "audience": sorted(verified.audience),
        "seconds": verified.expiry - int(time.time()),
        "refused": sorted(refused),
    }


def follow(socket, wanted, rotations):
    """The serial numbers of the wanted SVID over so many rotations, as an X509Source sees them."""

    def pick(svids):
        return next(svid for svid in svids if svid.spiffe_id == wanted)

    changed = threading.Event()
    with X509Source(socket_path=socket, timeout_in_seconds=PATIENCE, svid_picker=pick) as source:
        source.subscribe_for_updates(changed.set)
        serials = []
        deadline = time.monotonic() + PATIENCE
        while len(serials) <= rotations:
            changed.clear()
            serial = format(source.get_x509_context().default_svid.leaf.serial_number, "x")
            if serial not in serials:
                serials.append(serial)
                continue
            assert changed.wait(deadline - time.monotonic()), f"no rotation after {serials}"
        return serials


def jwt_source(socket, wanted):
    with JwtSource(socket_path=socket, timeout_in_seconds=PATIENCE) as source:
        bundle = source.get_bundle_for_trust_domain(TrustDomain(wanted.trust_domain.name))
        return len(bundle.jwt_authorities)


def plain(socket):
    """What the library hides: hints, and the refusal of calls without the security header."""
    with grpc.insecure_channel(socket.replace("unix://", "unix:")) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        header = [("workload.spiffe.io", "true")]
        answer = next(
            iter(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=header, timeout=10))
        )
        hints = {svid.spiffe_id: svid.hint for svid in answer.svids}
        codes = {}
        for name, call in {
            "FetchX509SVID": lambda md: next(
                iter(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=md, timeout=10))
            ),
            "FetchX509Bundles": lambda md: next(
                iter(stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=md, timeout=10))
            ),
            "FetchJWTSVID": lambda md: stub.FetchJWTSVID(
                workload_pb2.JWTSVIDRequest(audience=[AUDIENCE]), metadata=md, timeout=10
            ),
            "FetchJWTBundles": lambda md: next(
                iter(stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=md, timeout=10))
            ),
            "ValidateJWTSVID": lambda md: stub.ValidateJWTSVID(
                workload_pb2.ValidateJWTSVIDRequest(audience=AUDIENCE, svid="x"), metadata=md, timeout=10
            ),
        }.items():
            codes[name] = [code_of(call, md) for md in ([], [("workload.spiffe.io", "false")])]
        return hints, codes


def code_of(call, metadata):
    try:
        call(metadata)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def main():
    socket, wanted, rotations = sys.argv[1], SpiffeId(sys.argv[2]), int(sys.argv[3])
    hints, without_header = plain(socket)
    with WorkloadApiClient(socket) as client:
        seen = {
            "svids": x509(client, wanted),
            "jwt": jwt(client, wanted),
        }
    seen["jwt_authorities"] = jwt_source(socket, wanted)
    seen["hints"] = hints
    seen["without_header"] = without_header
    seen["serials"] = follow(socket, wanted, rotations)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
