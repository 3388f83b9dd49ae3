"""The pages of the study of the frontier."""
def write(found, folder): pass
def show(found, folder): print(found.key, len(found.points))
